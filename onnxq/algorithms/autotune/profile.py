"""How long each kernel of a model takes, and which tensors it reads and gives."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.verify.latency import time_interleaved

TURNS = 200
"""Runs with and without the profiler, at most. Its clock counts whole microseconds: one run tells little."""

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """A node as ONNX Runtime runs it.

    Attributes:
        op_type, name: as ONNX Runtime has them.
        inputs, outputs: names of tensors.
        elements: of its first input.
        seconds: what it takes; those of all kernels add up to the time of a run.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    elements: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """Of one model.

    Attributes:
        seconds: a run, without the profiler.
        kernels: in the order in which they run, those in bodies of control flow left out.
    """

    seconds: float
    kernels: tuple[Kernel, ...]


def profiles(
    models: Sequence[ir.Model], sample: Sample, *, providers: Sequence[str], threads: int, seconds: float
) -> list[Profile]:
    """A profile of each model, from runs in turns.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    plain = [open_session(model, providers=providers, threads=threads, exact=False) for model in models]
    times = np.median(time_interleaved(plain, sample, seconds=seconds / 2, most=TURNS), axis=0)
    del plain
    with tempfile.TemporaryDirectory(prefix="autotune-", ignore_cleanup_errors=True) as folder:
        places = [Path(folder) / f"model{i}" for i in range(len(models))]
        sessions = [
            open_session(model, providers=providers, threads=threads, exact=False, profile=place)
            for model, place in zip(models, places, strict=True)
        ]
        time_interleaved(sessions, sample, seconds=seconds / 2, most=TURNS)
        found = [_kernels(session, place) for session, place in zip(sessions, places, strict=True)]
    return [_fitted(kernels, float(time)) for kernels, time in zip(found, times, strict=True)]


def _fitted(kernels: Sequence[Kernel], seconds: float) -> Profile:
    """Kernels whose times add up to ``seconds``: the profiler's work, as much for each, is left out."""
    total = sum(kernel.seconds for kernel in kernels)
    excess = (total - seconds) / max(len(kernels), 1)
    fitted = tuple(replace(kernel, seconds=max(kernel.seconds - excess, 0.0)) for kernel in kernels)
    return Profile(seconds, fitted)


def _kernels(session: ort.InferenceSession, place: Path) -> list[Kernel]:
    """What the profile says of the nodes that the graph has."""
    events = _events(Path(session.end_profiling()))
    graph = onnx.load(f"{place}.onnx", load_external_data=False).graph
    return [_kernel(node, events[key]) for key, node in _matched(graph.node, list(events))]


_Key = tuple[str, str, str]
"""Name, operator and index of a node."""


def _events(file: Path) -> dict[_Key, list[Mapping[str, Any]]]:
    """The events of each node, in the order in which the nodes run."""
    found: dict[_Key, list[Mapping[str, Any]]] = {}
    for event in json.loads(file.read_text("utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            more = event["args"]
            key = name.removesuffix(_SUFFIX), str(more["op_name"]), str(more.get("node_index", ""))
            found.setdefault(key, []).append(event)
    return found


def _matched(nodes: Sequence[onnx.NodeProto], keys: Sequence[_Key]) -> list[tuple[_Key, onnx.NodeProto]]:
    """Nodes are written in the order in which they run, so that those without a name are found too."""
    if [node.op_type for node in nodes] == [op_type for _, op_type, _ in keys]:
        return list(zip(keys, nodes, strict=True))
    named = {(node.name, node.op_type): node for node in nodes if node.name}
    return [(key, named[key[:2]]) for key in keys if key[:2] in named]


def _kernel(node: onnx.NodeProto, events: Sequence[Mapping[str, Any]]) -> Kernel:
    shapes = events[0]["args"].get("input_type_shape", [])
    return Kernel(
        op_type=node.op_type,
        name=node.name,
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        elements=int(np.prod(next(iter(shapes[0].values())), dtype=np.int64)) if shapes else 0,
        seconds=_usual([event["dur"] for event in events]) * 1e-6,
    )


def _usual(durations: Sequence[int]) -> float:
    """The mean of the faster half: whatever else the machine did made the others slower."""
    return float(np.mean(sorted(durations)[: max(len(durations) // 2, 1)]))
