"""The time of each operator before and after, from profiles of ONNX Runtime."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.algorithms.autotune.kernel_trace import Traced, trace
from onnxq.algorithms.autotune.profile import Profile, profiles
from onnxq.graph.nodes import name_of

SECONDS = 1.0
"""The time to spend on the profiles; slow models take longer."""


@dataclass(frozen=True)
class OperatorTime:
    """The kernels of one operator of ONNX Runtime, in one run of each model.

    Attributes:
        op_type: the operator.
        before, after: seconds in the float and in the quantized model.
        kernels_before, kernels_after: the number of kernels in each.
    """

    op_type: str
    before: float
    after: float
    kernels_before: int
    kernels_after: int


@dataclass(frozen=True)
class NodeTime:
    """The kernel of a node, with the nodes fused into it.

    Attributes:
        node: the node of the float model that stands for the kernel.
        op_type: its operator.
        before, after: seconds in the float and in the quantized model.
        fused: the number of other nodes in the kernel, in the quantized model.
    """

    node: str
    op_type: str
    before: float
    after: float
    fused: int


@dataclass(frozen=True)
class KernelTimes:
    """The times of both models on one sample.

    Attributes:
        before, after: seconds of a run of the float and of the quantized model.
        operators: by operator, the slowest first.
        nodes: by node, the slowest first.
        conversions: seconds of a run of the quantized model in Q, DQ, and changes of the memory layout.
        threads: the number of threads; 0: all.
    """

    before: float
    after: float
    operators: tuple[OperatorTime, ...]
    nodes: tuple[NodeTime, ...]
    conversions: float
    threads: int


def kernel_times(reference: ir.Model, quantized: ir.Model, sample: Sample, threads: int) -> KernelTimes:
    """Profile both models in turns.

    Args:
        reference: the float model.
        quantized: the same model with Q/DQ.
        sample: the batch to run.
        threads: threads within a node; 0: all.

    Raises:
        CalibrationError: ONNX Runtime refuses a model.
    """
    pair = profiles(
        (reference, quantized),
        sample,
        providers=("CPUExecutionProvider",),
        threads=threads,
        seconds=SECONDS,
    )
    first, second = (
        trace(profile, model.graph, reference.graph)
        for profile, model in zip(pair, (reference, quantized), strict=True)
    )
    return KernelTimes(
        before=pair[0].seconds,
        after=pair[1].seconds,
        operators=_operators(*pair),
        nodes=_nodes(reference.graph, first, second),
        conversions=sum(second.tensors.values()),
        threads=threads,
    )


def _operators(before: Profile, after: Profile) -> tuple[OperatorTime, ...]:
    seconds: Mapping[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    counts: Mapping[str, list[int]] = defaultdict(lambda: [0, 0])
    for index, profile in enumerate((before, after)):
        for kernel in profile.kernels:
            seconds[kernel.op_type][index] += kernel.seconds
            counts[kernel.op_type][index] += 1
    found = [
        OperatorTime(name, times[0], times[1], counts[name][0], counts[name][1])
        for name, times in seconds.items()
    ]
    return tuple(sorted(found, key=lambda one: -max(one.before, one.after)))


def _nodes(graph: ir.Graph, before: Traced, after: Traced) -> tuple[NodeTime, ...]:
    """Pair the kernels of both models by the node that stands for them in the quantized one."""
    types = {name_of(node): node.op_type for node in graph}
    sizes: dict[str, int] = defaultdict(int)
    for owner in after.owners.values():
        sizes[owner] += 1
    earlier: dict[str, float] = defaultdict(float)
    for name, spent in before.nodes.items():
        earlier[after.owners.get(name, name)] += spent
    names = {name for name in (*earlier, *after.nodes) if name in types}
    found = [
        NodeTime(name, types[name], earlier[name], after.nodes.get(name, 0.0), max(sizes[name] - 1, 0))
        for name in names
    ]
    return tuple(sorted(found, key=lambda one: (-max(one.before, one.after), one.node)))
