"""Stepwise execution of a model on many samples, with changes between the steps.

The run pauses at each stop with the values of one tensor for all samples. The caller may then change these
values, or constants that later nodes read. All nodes downstream use the changed values. So errors can be
corrected one layer after the other in a single run of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import processors, run_batch
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.graph.nodes import name_of

Array = NDArray[np.generic]

Change = Callable[[str, list[Array]], list[Array]]
"""Maps the name of a tensor and its array for each batch to the arrays to continue with."""


def run_stepwise(
    model: ir.Model, stops: Sequence[str], batches: Sequence[Sample], change: Change, threads: int = 0
) -> None:
    """Run ``model`` on ``batches`` up to the last stop, and replace the tensor at each stop.

    Args:
        model: a model whose parts can run alone (`onnxq.algorithms.layers.subgraphs.is_partitionable`).
        stops: names of tensors that its nodes compute.
        batches: the samples to run it on.
        change: called at each stop, in graph order.
        threads: number of batches to run in parallel; 0 for one per processor.

    Raises:
        CalibrationError: a part of the model does not load, or rejects a batch.
    """
    for stop, arrays in iterate_steps(model, stops, batches, threads):
        arrays[:] = change(stop, list(arrays))


def iterate_steps(
    model: ir.Model, stops: Sequence[str], batches: Sequence[Sample], threads: int = 0
) -> Iterator[tuple[str, list[Array]]]:
    """Run ``model`` on ``batches`` and yield each stop with the array of its tensor for each batch.

    The next step uses the arrays that the list then holds, and the values that the constants then have.

    Args:
        model: a model whose parts can run alone (`onnxq.algorithms.layers.subgraphs.is_partitionable`).
        stops: names of tensors that its nodes compute.
        batches: the samples to run it on.
        threads: number of batches to run in parallel; 0 for one per processor.

    Raises:
        CalibrationError: a part of the model does not load, or rejects a batch.
    """
    held: list[dict[str, Array]] = [dict(batch.feeds) for batch in batches]
    segments = _segments(model, frozenset(stops))
    with ThreadPoolExecutor(threads or processors()) as pool:
        for number, segment in enumerate(segments):
            later = {name for other in segments[number + 1 :] for name in other.reads}
            needed = (name for name in segment.gives if name in later or name == segment.stop)
            _run(model, replace(segment, gives=tuple(needed)), batches, held, pool)
            there = [arrays[segment.stop] for arrays in held]
            yield segment.stop, there
            for arrays, array in zip(held, there, strict=True):
                arrays[segment.stop] = array
                for name in arrays.keys() - later:
                    del arrays[name]


@dataclass(frozen=True)
class _Segment:
    """The nodes that run between the previous stop and this one.

    Attributes:
        stop: the tensor at the end.
        reads: the inputs of the model and the tensors of earlier segments that the nodes read.
        gives: all tensors that the nodes compute.
    """

    stop: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]


def step_numbers(model: ir.Model, stops: Sequence[str]) -> dict[ir.Node, int]:
    """Map each node that runs before the last stop to the number of the step in which it runs.

    The stops count from 0 in graph order. Each node runs in the last possible step. This keeps few tensors in
    memory, and keeps quantized ones as integers rather than as floats.
    """
    return _placed(model, _ends(model, frozenset(stops)))


def _ends(model: ir.Model, stops: frozenset[str]) -> list[ir.Value]:
    return [v for node in model.graph for v in node.outputs if v.name in stops]


def _placed(model: ir.Model, ends: Sequence[ir.Value]) -> dict[ir.Node, int]:
    number = {end.producer(): i for i, end in enumerate(ends)}
    segment_of: dict[ir.Node, int] = {}
    for node in reversed(list(model.graph)):
        needed = [
            segment_of[use.node] for value in node.outputs for use in value.uses() if use.node in segment_of
        ]
        needed += [number[node]] if node in number else []
        if needed:
            segment_of[node] = min(needed)
    return segment_of


def _segments(model: ir.Model, stops: frozenset[str]) -> list[_Segment]:
    ends = _ends(model, stops)
    segment_of = _placed(model, ends)
    members: list[list[ir.Node]] = [[] for _ in ends]
    for node in model.graph:
        if node in segment_of:
            members[segment_of[node]].append(node)
    return [_segment(nodes, name_of(end)) for nodes, end in zip(members, ends, strict=True)]


def _segment(nodes: Sequence[ir.Node], stop: str) -> _Segment:
    made = dict.fromkeys(value for node in nodes for value in node.outputs if value.name)
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    outside = (name_of(v) for v in read if v not in made and not v.is_initializer())
    return _Segment(stop, tuple(outside), tuple(name_of(value) for value in made))


def _part(model: ir.Model, segment: _Segment) -> ir.Model:
    graph = ir.convenience.extract(model.graph, list(segment.reads), list(segment.gives))
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _run(
    model: ir.Model,
    segment: _Segment,
    batches: Sequence[Sample],
    held: Sequence[dict[str, Array]],
    pool: ThreadPoolExecutor,
) -> None:
    session = open_session(_part(model, segment), threads=1, alone=False)

    def one(batch: Sample, arrays: Mapping[str, Array]) -> list[Array]:
        feeds = {name: arrays[name] for name in segment.reads}
        return run_batch(session, segment.gives, Sample(batch.name, feeds, batch.count))

    for arrays, given in zip(held, pool.map(one, batches, held), strict=True):
        arrays.update(zip(segment.gives, given, strict=True))
