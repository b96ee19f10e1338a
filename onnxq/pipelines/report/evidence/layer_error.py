"""The error of each quantized tensor, and of the output of each quantized node, against the float model.

Both models run on the same samples. Tensors are watched in parts, so that memory is bounded. The error of a
tensor has two sources that can be told apart: what its node made of quantized inputs and weights, and the
rounding and clipping of the tensor itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, prod

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.core.numerics import decibels
from onnxq.core.plan import QuantPlan
from onnxq.graph.nodes import is_op, name_of
from onnxq.graph.passes.shapes import InferShapesPass
from onnxq.graph.qdq.read_qdq import DEQUANTIZE, QUANTIZE

PART_BYTES = 2**27
"""The largest size of the float tensors of one part, in bytes, for one batch."""

UNKNOWN_ELEMENTS = 2**20
"""The number of elements that a tensor of unknown shape is taken to have."""

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor.

    Attributes:
        tensor: its name in the float model.
        node: the node that computes it, or that the one which does is fused with; empty for an input of the
            model.
        op_type: the operator of that node.
        sqnr: power of the tensor over power of its error, in dB.
        rounding: the same for its own rounding alone; infinite if it is not quantized itself.
        source: the worst measured tensor that its node reads, also through float nodes; empty: none.
        inherited: the SQNR of that tensor; infinite if there is none, because the inputs are exact.
        spread: largest magnitude of a channel over that of the median channel; 1 if it has no channels.
        is_output: whether it is an output of the model.
    """

    tensor: str
    node: str
    op_type: str
    sqnr: float
    rounding: float = inf
    source: str = ""
    inherited: float = inf
    spread: float = 1.0
    is_output: bool = False

    @property
    def lost(self) -> float:
        """What the SQNR lost from the worst input to this tensor, in dB; infinite behind exact inputs."""
        return self.inherited - self.sqnr


@dataclass(frozen=True)
class _Watched:
    """A tensor of the float model, and its forms in the quantized model.

    Attributes:
        value: the tensor.
        raw: its name before its own rounding.
        rounded: its name after it; None: it is not quantized.
        limits: values beyond are cut off in both models: what reads the tensor does not tell them apart.
    """

    value: ir.Value
    raw: str
    rounded: str | None
    limits: tuple[float, float] = (-inf, inf)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the forms."""
        return (self.raw,) if self.rounded is None else (self.raw, self.rounded)


@dataclass
class _Sums:
    """Sums of one tensor over all batches, whose values are cut off at ``limits``."""

    limits: tuple[float, float] = (-inf, inf)
    signal: float = 0.0
    noise: float = 0.0
    raw_signal: float = 0.0
    rounding: float = 0.0
    channels: list[NDArray[np.float64]] = field(default_factory=list)

    def add(
        self, real: NDArray[np.generic], raw: NDArray[np.generic], rounded: NDArray[np.generic] | None
    ) -> None:
        """Add one batch."""
        known = np.isfinite(real)
        exact, before = (np.clip(array.astype(np.float64), *self.limits) for array in (real, raw))
        after = before if rounded is None else np.clip(rounded.astype(np.float64), *self.limits)
        self.signal += _power(exact[known])
        self.noise += _power((exact - after)[known])
        if rounded is not None:
            self.raw_signal += _power(before[known])
            self.rounding += _power((before - after)[known])
        self.channels.append(_channel_peaks(np.where(known, exact, 0.0)))

    @property
    def sqnr(self) -> float:
        """The SQNR of all batches, in dB."""
        return decibels(self.signal, self.noise)

    @property
    def spread(self) -> float:
        """Largest magnitude of a channel over that of the median channel that is not zero."""
        sizes = {len(peaks) for peaks in self.channels}
        peaks = np.max(self.channels, axis=0) if len(sizes) == 1 else np.empty(0)
        peaks = peaks[peaks > 0]
        return float(peaks.max() / np.median(peaks)) if len(peaks) else 1.0


def layer_errors(
    reference: ir.Model,
    quantized: ir.Model,
    plan: QuantPlan,
    batches: Sequence[Sample],
    running: tuple[Sequence[str], int],
) -> tuple[TensorError, ...]:
    """Measure the error of each quantized tensor, and of the outputs of nodes in integers, in graph order.

    Tensors that the quantized model has under another name, or not at all because nodes were rewritten, are
    left out.

    Args:
        reference: the float model that the plan is for.
        quantized: the quantized model.
        plan: the plan.
        batches: the batches to run, at least one.
        running: the execution providers, and the threads within a node (0: all).

    Raises:
        CalibrationError: a model does not load, or does not take a batch.
    """
    watched = list(_watched(reference.graph, quantized.graph, plan))
    sums = {name_of(one.value): _Sums(one.limits) for one in watched}
    for part in _parts(watched, _sizes(reference, batches[0])):
        wanted = [name_of(one.value) for one in part], [name for one in part for name in one.names]
        sessions = [
            open_session(model, outputs=_computed(model, names), providers=running[0], threads=running[1])
            for model, names in zip((reference, quantized), wanted, strict=True)
        ]
        for batch in batches:
            pair = [_run(s, names, batch) for s, names in zip(sessions, wanted, strict=True)]
            _compare(part, pair[0], pair[1], sums)
    return tuple(_told(reference.graph, watched, sums, plan))


def _compare(part: Sequence[_Watched], exact: Arrays, given: Arrays, sums: Mapping[str, _Sums]) -> None:
    """Add the tensors of a part that have the same shape in both models."""
    for one in part:
        name = name_of(one.value)
        forms = [given[form] for form in one.names]
        alike = all(form.shape == exact[name].shape and _is_real(form) for form in forms)
        if alike and _is_real(exact[name]):
            sums[name].add(exact[name], forms[0], forms[1] if len(forms) > 1 else None)


def _computed(model: ir.Model, names: Sequence[str]) -> list[str]:
    """Leave out the graph inputs: these are known, and a session does not give them."""
    inputs = {value.name for value in model.graph.inputs}
    return [name for name in names if name not in inputs]


def _run(session: ort.InferenceSession, names: Sequence[str], batch: Sample) -> Arrays:
    fed = {name: batch.feeds[name] for name in names if name in batch.feeds}
    wanted = list(dict.fromkeys(name for name in names if name not in fed))
    return {**fed, **dict(zip(wanted, run_batch(session, wanted, batch), strict=True))}


def _watched(graph: ir.Graph, quantized: ir.Graph, plan: QuantPlan) -> Iterator[_Watched]:
    """Yield the tensors to watch, in graph order."""
    inside = _limits(plan)
    nodes = {node.name: node for node in quantized if node.name}
    planned = _planned(graph, plan)
    values = ir.convenience.create_value_mapping(quantized)
    for value in graph.inputs:
        if name_of(value) in inside and name_of(value) in values:
            forms = _forms(value, values[name_of(value)], inside[name_of(value)])
            yield from (one for one in forms if one.rounded is not None)
    for node in graph:
        twin = nodes.get(name_of(node))
        alike = twin is not None and len(twin.outputs) == len(node.outputs)
        for index, value in enumerate(node.outputs):
            computed = node.name in plan.integer_nodes and not _is_inside_kernel(value, planned)
            if not value.name or not (computed or value.name in inside):
                continue
            other = twin.outputs[index] if twin is not None and alike else values.get(value.name)
            if other is not None and other.name:
                yield from _forms(value, other, inside.get(value.name, (-inf, inf)))


def _planned(graph: ir.Graph, plan: QuantPlan) -> frozenset[str]:
    """The nodes that are planned for themselves; others are fused with one before, or compute no reals.

    Without quantized activations nothing is fused: the plan names only nodes with weights.
    """
    if not plan.points:
        return frozenset(map(name_of, graph))
    return frozenset((*plan.integer_nodes, *plan.float_nodes, *plan.passthrough_nodes))


def _is_inside_kernel(value: ir.Value, planned: frozenset[str]) -> bool:
    """Whether only nodes that are fused with its own read a tensor, so that it never exists."""
    readers = [use.node for use in value.uses()]
    return bool(readers) and not value.is_graph_output() and planned.isdisjoint(map(name_of, readers))


def _head(node: ir.Node, planned: frozenset[str]) -> ir.Node:
    """The planned node that a node is fused with; itself if it is planned."""
    while name_of(node) not in planned:
        maker = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if maker is None:
            break
        node = maker
    return node


def _limits(plan: QuantPlan) -> dict[str, tuple[float, float]]:
    """Map each quantized activation to the limits beyond which its readers do not tell values apart.

    A Relu or Clip after it sets bounds; below the range of a group with a flat reader, that reader is flat.
    """
    found: dict[str, tuple[float, float]] = {}
    for group in plan.groups.values():
        if not group.constant:
            low, high = group.bounds
            if group.flat is not None:
                params = plan.params[group.name]
                low = max(low, (group.spec.limits[0] - float(params.zero_point)) * float(params.scale))
            found |= dict.fromkeys(group.tensors, (low, high))
    return found


def _forms(value: ir.Value, other: ir.Value, limits: tuple[float, float]) -> Iterator[_Watched]:
    """Yield a float tensor with its forms in the quantized model, where ``other`` computes it."""
    if not _may_be_real(value):
        return
    if not _may_be_real(other):  # a node that was rewritten to work on integers
        real = _reader(other, DEQUANTIZE)
        if real is not None:
            yield _Watched(value, name_of(real), None, limits)
        return
    clipped = _reader(other, "Clip")
    integers = _reader(other, QUANTIZE) or (_reader(clipped, QUANTIZE) if clipped else None)
    rounded = None if integers is None else _reader(integers, DEQUANTIZE)
    yield _Watched(value, name_of(other), None if rounded is None else name_of(rounded), limits)


def _may_be_real(value: ir.Value) -> bool:
    """Whether a tensor holds float numbers, as far as its type is known."""
    return value.dtype is None or value.dtype.is_floating_point()


def _reader(value: ir.Value, op_type: str) -> ir.Value | None:
    """The output of the first reader with this operator."""
    found = (use.node for use in value.uses() if use.idx == 0 and is_op(use.node, op_type))
    ours = (use.node for use in value.uses() if use.node.op_type == op_type and use.node.domain)
    node = next(found, None) or next(ours, None)
    return None if node is None else node.outputs[0]


def _sizes(reference: ir.Model, batch: Sample) -> Mapping[str, int]:
    """Estimate the number of elements of each tensor of a batch, as far as shapes can be inferred.

    An axis of unknown size counts as the longest one of the inputs whose size is free.
    """
    copy = reference.clone()
    InferShapesPass()(copy)
    free: dict[str, int] = {}
    for value in copy.graph.inputs:
        array = batch.feeds.get(name_of(value))
        if value.shape is not None and array is not None:
            pairs = zip(value.shape, array.shape, strict=False)
            free |= {str(dim): size for dim, size in pairs if not isinstance(dim, int)}
    longest = max(free.values(), default=1)
    computed = (value for node in copy.graph for value in node.outputs)
    return {
        name_of(value): prod(d if isinstance(d, int) else free.get(str(d), longest) for d in value.shape)
        for value in (*copy.graph.inputs, *computed)
        if value.shape is not None and value.name
    }


def _parts(watched: Sequence[_Watched], sizes: Mapping[str, int]) -> Iterator[list[_Watched]]:
    """Cut the list into parts whose tensors fit into `PART_BYTES`."""
    part: list[_Watched] = []
    used = 0
    for one in watched:
        size = sizes.get(name_of(one.value), UNKNOWN_ELEMENTS) * 4 * (1 + len(one.names))
        if part and used + size > PART_BYTES:
            yield part
            part, used = [], 0
        part.append(one)
        used += size
    if part:
        yield part


def _told(
    graph: ir.Graph, watched: Sequence[_Watched], sums: Mapping[str, _Sums], plan: QuantPlan
) -> Iterator[TensorError]:
    known = {name: sum_.sqnr for name, sum_ in sums.items() if sum_.signal > 0}
    nearest = _nearest(graph, known)
    planned = _planned(graph, plan)
    for one in watched:
        name, total = name_of(one.value), sums[name_of(one.value)]
        if name not in known:  # it was never compared, or is zero throughout
            continue
        maker = one.value.producer()
        node = _head(maker, planned) if maker is not None else None
        source = _worst_of(node.inputs, nearest, known) if node is not None else ""
        yield TensorError(
            tensor=name,
            node=name_of(node) if node is not None else "",
            op_type=node.op_type if node is not None else "",
            sqnr=known[name],
            rounding=inf if one.rounded is None else decibels(total.raw_signal, total.rounding),
            source=source,
            inherited=known.get(source, inf),
            spread=total.spread,
            is_output=one.value.is_graph_output(),
        )


def _nearest(graph: ir.Graph, known: Mapping[str, float]) -> dict[str, str]:
    """Map each tensor to itself if it was measured, else to the worst measured one that it comes from."""
    found = {name: name for name in known}
    for node in graph:
        worst = _worst_of(node.inputs, found, known)
        for value in node.outputs:
            if worst and value.name and value.name not in found:
                found[value.name] = worst
    return found


def _worst_of(
    values: Iterable[ir.Value | None], nearest: Mapping[str, str], known: Mapping[str, float]
) -> str:
    """The worst measured tensor that some tensors come from; empty if there is none."""
    names = {name_of(value) for value in values if value is not None and value.name}
    sources = {nearest[name] for name in names if name in nearest}
    return min(sorted(sources), key=lambda each: known[each], default="")


def _is_real(array: NDArray[np.generic]) -> bool:
    """Whether an array holds float numbers; bfloat16 and FP8 are kinds of their own to NumPy."""
    return array.dtype.kind in "fV"


def _power(values: NDArray[np.float64]) -> float:
    return float(np.dot(values.reshape(-1), values.reshape(-1)))


def _channel_peaks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest magnitude of each channel: axis 1 of pictures, else the last axis; none for vectors."""
    axis = 1 if values.ndim >= 4 else values.ndim - 1
    if values.ndim < 2 or values.size == 0:
        return np.empty(0)
    peaks: NDArray[np.float64] = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
    return peaks
