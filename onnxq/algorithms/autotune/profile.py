"""Profile models: the time of each kernel, and the tensors that it reads and writes."""

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
"""The largest number of runs with the profiler, and of runs without it.

Many runs are needed, because the clock of the profiler has a resolution of one microsecond.
"""

_SUFFIX = "_kernel_time"


@dataclass(frozen=True)
class Kernel:
    """A node as ONNX Runtime runs it.

    Attributes:
        op_type: its operator in ONNX Runtime.
        name: its name in ONNX Runtime.
        inputs: the names of its input tensors.
        outputs: the names of its output tensors.
        elements: the number of elements of its first input; 0 if it is not known.
        seconds: its time; the times of all kernels add up to the time of a run.
    """

    op_type: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    elements: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """The profile of a model.

    Attributes:
        seconds: the time of a run without the profiler.
        kernels: the kernels in the order in which they run, without those in bodies of control flow.
    """

    seconds: float
    kernels: tuple[Kernel, ...]


def profiles(
    models: Sequence[ir.Model], sample: Sample, *, providers: Sequence[str], threads: int, seconds: float
) -> list[Profile]:
    """Profile models, which run in turns.

    Args:
        models: the models.
        sample: the batch to run.
        providers: execution providers, the preferred one first.
        threads: threads within a node; 0: all.
        seconds: the time to spend.

    Returns:
        The profile of each model.

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
    """Make a profile whose kernel times add up to ``seconds``.

    The overhead of the profiler is subtracted; it is taken to be equal for all kernels.
    """
    total = sum(kernel.seconds for kernel in kernels)
    excess = (total - seconds) / max(len(kernels), 1)
    fitted = tuple(replace(kernel, seconds=max(kernel.seconds - excess, 0.0)) for kernel in kernels)
    return Profile(seconds, fitted)


def _kernels(session: ort.InferenceSession, place: Path) -> list[Kernel]:
    """Read the kernels from the profile and the optimized graph."""
    events = _events(Path(session.end_profiling()))
    graph = onnx.load(f"{place}.onnx", load_external_data=False).graph
    return [_kernel(node, events[key]) for key, node in _matched(graph.node, list(events))]


_Key = tuple[str, str, str]
"""The name, the operator and the index of a node."""


def _events(file: Path) -> dict[_Key, list[Mapping[str, Any]]]:
    """Read the events of each node from a profile, in the order in which the nodes run."""
    found: dict[_Key, list[Mapping[str, Any]]] = {}
    for event in json.loads(file.read_text("utf-8")):
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_SUFFIX):
            more = event["args"]
            key = name.removesuffix(_SUFFIX), str(more["op_name"]), str(more.get("node_index", ""))
            found.setdefault(key, []).append(event)
    return found


def _matched(nodes: Sequence[onnx.NodeProto], keys: Sequence[_Key]) -> list[tuple[_Key, onnx.NodeProto]]:
    """Match the nodes of the optimized graph with the keys of events.

    ONNX Runtime writes nodes in the order in which they run, so nodes without a name can be matched too.
    """
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
    """Return the mean of the faster half: other work on the machine can only make runs slower."""
    return float(np.mean(sorted(durations)[: max(len(durations) // 2, 1)]))
