"""A model run from stop to stop over many samples: every node once, and changed on the way.

At each stop one tensor is there, of every sample. What is done then to it, or to constants that are read
later, all nodes behind it see: so errors can be corrected one layer after the other, without running the
model anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import processors, run_batch
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.graph.nodes import name_of

Array = NDArray[np.generic]

Change = Callable[[str, list[Array]], list[Array]]
"""The name of a tensor, what it holds for each batch -> what it is to hold instead."""


def run_stepwise(
    model: ir.Model, stops: Sequence[str], batches: Sequence[Sample], change: Change, threads: int = 0
) -> None:
    """Run ``model`` on ``batches``, as far as the last stop.

    Args:
        model: one whose parts can run alone (`onnxq.algorithms.layers.subgraphs.is_partitionable`).
        stops: tensors that nodes of it give.
        batches: what it is run on.
        change: called at each stop, in the order of the nodes.
        threads: batches side by side; 0 takes every processor.

    Raises:
        CalibrationError: it does not load, or does not take a batch.
    """
    for stop, arrays in iterate_steps(model, stops, batches, threads):
        arrays[:] = change(stop, list(arrays))


def iterate_steps(
    model: ir.Model, stops: Sequence[str], batches: Sequence[Sample], threads: int = 0
) -> Iterator[tuple[str, list[Array]]]:
    """The same one step at a time: each stop, with what its tensor holds for each batch.

    What the list holds when the next step is asked for, and constants of ``model`` as they are then, is what
    nodes behind the stop see.
    """
    held: list[dict[str, Array]] = [dict(batch.feeds) for batch in batches]
    legs = _segments(model, frozenset(stops))
    with ThreadPoolExecutor(threads or processors()) as pool:
        for number, leg in enumerate(legs):
            later = {name for other in legs[number + 1 :] for name in other.reads}
            gives = [name for name in leg.gives if name in later or name == leg.stop]
            _run(_part(model, leg, gives), leg.reads, gives, batches, held, pool)
            there = [arrays[leg.stop] for arrays in held]
            yield leg.stop, there
            for arrays, array in zip(held, there, strict=True):
                arrays[leg.stop] = array
                for name in arrays.keys() - later:
                    del arrays[name]


@dataclass(frozen=True)
class _Segment:
    """The nodes that run before a stop.

    Attributes:
        stop: the tensor at the end.
        reads: what they need of the legs before.
        gives: all that they make.
    """

    stop: str
    reads: tuple[str, ...]
    gives: tuple[str, ...]


def _segments(model: ir.Model, stops: frozenset[str]) -> list[_Segment]:
    """Every node as late as possible, so that few tensors wait, and those in integers rather than reals."""
    ends = [v for node in model.graph for v in node.outputs if v.name in stops]
    number = {end.producer(): i for i, end in enumerate(ends)}
    leg_of: dict[ir.Node, int] = {}
    for node in reversed(list(model.graph)):
        legs = [leg_of[use.node] for value in node.outputs for use in value.uses() if use.node in leg_of]
        legs += [number[node]] if node in number else []
        if legs:
            leg_of[node] = min(legs)
    members: list[list[ir.Node]] = [[] for _ in ends]
    for node in model.graph:
        if node in leg_of:
            members[leg_of[node]].append(node)
    return [_segment(nodes, name_of(end)) for nodes, end in zip(members, ends, strict=True)]


def _segment(nodes: Sequence[ir.Node], stop: str) -> _Segment:
    made = dict.fromkeys(value for node in nodes for value in node.outputs if value.name)
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None)
    outside = (name_of(v) for v in read if v not in made and not v.is_initializer())
    return _Segment(stop, tuple(outside), tuple(name_of(value) for value in made))


def _part(model: ir.Model, leg: _Segment, gives: Sequence[str]) -> ir.Model:
    graph = ir.convenience.extract(model.graph, list(leg.reads), list(gives))
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _run(
    part: ir.Model,
    reads: Sequence[str],
    gives: Sequence[str],
    batches: Sequence[Sample],
    held: Sequence[dict[str, Array]],
    pool: ThreadPoolExecutor,
) -> None:
    session = open_session(part, threads=1, alone=False)

    def one(batch: Sample, arrays: Mapping[str, Array]) -> list[Array]:
        feeds = {name: arrays[name] for name in reads}
        return run_batch(session, gives, Sample(batch.name, feeds, batch.count))

    for arrays, given in zip(held, pool.map(one, batches, held), strict=True):
        arrays.update(zip(gives, given, strict=True))
