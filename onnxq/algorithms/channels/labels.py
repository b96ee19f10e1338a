"""Which channels must share a factor, also through Reshape.

Labels of channels through Reshape, Flatten, Squeeze and Unsqueeze.

Labels have the rank of their tensor; a dimension along which they do not change has size 1, whatever the
tensor's is. A reshape is cut into blocks of dimensions that hold the same elements before and after; only
the blocks along which labels change need known sizes.

Which channels of which tensors may be scaled, and which of them only together.

Every channel of every tensor gets a label. If a channel with label c is multiplied by a factor s[c] > 0,
then so must be all that have this label, and the constants of the graph take the factors in (`ScaleFold`):
the weights of a convolution are multiplied by the factors of their output and divided by those of their
input. What the graph computes stays the same, whatever the factors are. Label 0 is for channels that must
stay as they are: its factor is 1.

`linear.py` has what each operator asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import all_nodes, constant_value, name_of

Labels = NDArray[np.int64]


Dims = Sequence[int | ir.SymbolicDim]


_Span = tuple[int, int]
"""First dimension, and the one behind the last."""


def reshaped(labels: Labels, before: Dims, after: Dims) -> Labels | None:
    """The labels of a tensor of shape ``before`` once it has shape ``after``; None where nobody can tell."""
    for old, new in _blocks(before, after):
        sizes, goal = before[slice(*old)], after[slice(*new)]
        if max(labels.shape[slice(*old)], default=1) == 1:
            labels = _with(labels, old, (1,) * len(goal))
        elif len(sizes) == len(goal) == 1:
            continue
        elif all(isinstance(size, int) for size in (*sizes, *goal)):
            full = np.broadcast_to(labels, (*labels.shape[: old[0]], *sizes, *labels.shape[old[1] :]))  # type: ignore[arg-type]
            labels = without_repeats(_with(full, old, goal), range(old[0], old[0] + len(goal)))  # type: ignore[arg-type]
        else:
            return None
    return labels


def _with(labels: Labels, span: _Span, sizes: Sequence[int]) -> Labels:
    return labels.reshape(*labels.shape[: span[0]], *sizes, *labels.shape[span[1] :])


def without_repeats(labels: Labels, axes: Sequence[int]) -> Labels:
    """``labels`` with size 1 along those of the axes where they do not change."""
    for axis in axes:
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if (labels == first).all():
            labels = first
    return labels


def _blocks(before: Dims, after: Dims) -> Iterator[tuple[_Span, _Span]]:
    """The last block first. What is left in the middle, perhaps of unknown sizes, is one block."""
    i, j = len(before), len(after)
    while found := _last_block(before[:i], after[:j]):
        yield (found[0], i), (found[1], j)
        i, j = found
    k = 0
    while k < min(i, j) and same_size(before[k], after[k]):
        k += 1
    if k < max(i, j):
        yield (k, i), (k, j)
    yield from (((n, n + 1), (n, n + 1)) for n in reversed(range(k)))


def _last_block(before: Dims, after: Dims) -> tuple[int, int] | None:
    """Where the last dimensions that hold equally many elements begin."""
    i, j = len(before) - 1, len(after) - 1
    if i < 0 or j < 0:
        return None
    if same_size(before[i], after[j]):
        return i, j
    one, other = before[i], after[j]
    while one != other:
        if not isinstance(one, int) or not isinstance(other, int):
            return None
        shorter, k = (before, i := i - 1) if one < other else (after, j := j - 1)
        if k < 0 or not isinstance(size := shorter[k], int) or not size:
            return None
        one, other = (one * size, other) if shorter is before else (one, other * size)
    return (i, j) if isinstance(one, int) else None


def same_size(one: int | ir.SymbolicDim, other: int | ir.SymbolicDim) -> bool:
    """Whether two dimensions are known to have one size, if only by its name."""
    if isinstance(one, ir.SymbolicDim) and one.value is None:
        return False
    return one == other


FIXED = 0
"""The label of channels that must stay as they are."""


@dataclass(frozen=True)
class ScaleFold:
    """A constant that takes factors in: it is multiplied by ``s[up]`` and divided by ``s[down]``.

    Attributes:
        node: the name of the node that reads it.
        index: the position of the input.
        up, down: labels that fit the shape of the constant when both are broadcast; it may grow.
    """

    node: str
    index: int
    up: Labels
    down: Labels


@dataclass(frozen=True)
class Channels:
    """The labels of a graph.

    Attributes:
        labels: for each tensor that is not fixed as a whole, an array of its rank; it has size 1 along
            every axis on which the labels do not change.
        count: how many labels there are, `FIXED` included.
        folds: the constants to change.
    """

    labels: Mapping[str, Labels]
    count: int
    folds: tuple[ScaleFold, ...]

    def of(self, tensor: str) -> Labels:
        """The labels of a tensor; a single `FIXED` if it is not listed."""
        return self.labels.get(tensor, np.full((), FIXED, np.int64))


class ChannelUnion:
    """Labels in the making: every rule asks for those of its inputs and ties them to those of its outputs."""

    def __init__(self) -> None:
        self._count = 1
        self._labels: dict[ir.Value, Labels] = {}
        self._pairs: list[tuple[Labels, Labels]] = []
        self._folds: list[ScaleFold] = []

    def of(self, value: ir.Value | None) -> Labels:
        """The labels of a tensor that is no constant; `FIXED` if nobody set any."""
        if value in self._labels:
            return self._labels[value]
        rank = 0 if value is None or value.shape is None else len(value.shape)
        return np.full((1,) * rank, FIXED, np.int64)

    def set(self, value: ir.Value, labels: Labels) -> None:
        """The labels of what a node computes."""
        self._labels[value] = labels

    def fresh(self, shape: Sequence[int]) -> Labels:
        """New labels, all of them different."""
        size = int(np.prod(shape))
        self._count += size
        return np.arange(self._count - size, self._count).reshape(tuple(shape))

    def tie(self, one: Labels, other: Labels) -> None:
        """Channels at the same place, once both are broadcast, get one label."""
        if one is not other:
            self._pairs.append((one, other))

    def hold(self, labels: Labels) -> None:
        """These channels must stay as they are."""
        self.tie(labels, np.full((), FIXED, np.int64))

    def fold(self, node: ir.Node, index: int, up: Labels | None = None, down: Labels | None = None) -> None:
        """The constant at this input takes factors in."""
        none = np.full((), FIXED, np.int64)
        self._folds.append(
            ScaleFold(name_of(node), index, none if up is None else up, none if down is None else down)
        )

    def finish(self) -> Channels:
        """Labels from 0 on without gaps, one for all channels that are tied."""
        final = _joined(self._count, self._pairs)
        folds = [ScaleFold(f.node, f.index, final[f.up], final[f.down]) for f in self._folds]
        labels = {name_of(value): final[ids] for value, ids in self._labels.items()}
        return Channels(
            labels=labels,
            count=int(final.max()) + 1,
            folds=tuple(fold for fold in folds if fold.up.any() or fold.down.any()),
        )


Rule = Callable[[ir.Node, ChannelUnion], Sequence[Labels] | None]
"""Tie a node's inputs, and give the labels of its outputs; None where all must stay as it is."""


def find_channels(model: ir.Model, rules: Mapping[str, Rule]) -> Channels:
    """The labels of the main graph of ``model``, which must have named nodes and known shapes.

    Operators without a rule, inputs and outputs of the graph and what the bodies of control-flow operators
    read stay as they are.
    """
    ties = ChannelUnion()
    for node in model.graph:
        rule = rules.get(node.op_type) if node.domain == "" and computes_floats(node) else None
        outputs = rule(node, ties) if rule is not None else None
        if outputs is None and node.op_type not in _BLIND:
            hold_inputs(node, ties)
        for value, labels in zip(node.outputs, outputs or (), strict=False):
            ties.set(value, labels)
    bodies = [node for node in all_nodes(model) if node.graph is not model.graph]
    for node in bodies:
        hold_inputs(node, ties)
    for graph in model.graphs():
        for value in graph.outputs:
            ties.hold(ties.of(value))
    return ties.finish()


_BLIND = frozenset({"Shape", "Size"})
"""They read a tensor, but none of its values."""


def computes_floats(node: ir.Node) -> bool:
    """Whether the first output, and all else that it is computed of, holds float32."""
    return bool(node.outputs) and node.outputs[0].dtype == ir.DataType.FLOAT


def hold_inputs(node: ir.Node, ties: ChannelUnion, but: Sequence[int] = ()) -> None:
    """Whatever the node computes with, except at these positions, stays as it is."""
    for index, value in enumerate(node.inputs):
        if index not in but and value is not None and constant_value(value) is None:
            ties.hold(ties.of(value))


def _joined(count: int, pairs: Sequence[tuple[Labels, Labels]]) -> NDArray[np.int64]:
    """For each of ``count`` labels the number of its class; `FIXED` stays what it is.

    Every class takes the least of its labels, by rounds of pointer jumping.
    """
    parent = np.arange(count)
    both = [np.stack([a.reshape(-1) for a in np.broadcast_arrays(*pair)]) for pair in pairs]
    one, other = np.concatenate(both, axis=1) if both else np.zeros((2, 0), np.int64)
    while (parent[one] != parent[other]).any():
        low = np.minimum(parent[one], parent[other])
        high = np.maximum(parent[one], parent[other])
        np.minimum.at(parent, high, low)
        while (parent != parent[parent]).any():
            parent = parent[parent]
    return np.unique(parent, return_inverse=True)[1].reshape(-1)
