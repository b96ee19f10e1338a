"""Labels of channels: which channels may be scaled or shifted, and which of them must share a factor.

Every channel of every tensor has a label. All channels with label c are multiplied by the same factor
s[c] > 0, and the constants of the graph absorb the factors (`ScaleFold`): the weights of a convolution are
multiplied by the factors of its output channels and divided by those of its input channels. The outputs of
the graph do not change, for any factors. Label 0 marks fixed channels, whose factor is 1. `scale_rules` and
`shift_rules` have the rules for each operator.

The labels of a tensor are an array of the same rank. An axis along which they do not change has size 1,
whatever the size of the tensor. Through Reshape, Flatten, Squeeze and Unsqueeze, the axes are split into
blocks that hold the same elements before and after. Sizes must be known only for blocks along which labels
change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import all_nodes, constant_value, name_of

Labels = NDArray[np.int64]


Dims = Sequence[int | ir.SymbolicDim]


_Span = tuple[int, int]
"""First axis of a block, and the one after its last axis."""


def reshaped(labels: Labels, before: Dims, after: Dims) -> Labels | None:
    """Return the labels of a tensor after a reshape; None if they cannot be determined.

    Args:
        labels: the labels before the reshape.
        before: shape of the tensor before it.
        after: shape of the tensor after it.
    """
    for old, new in _blocks(before, after):
        sizes, goal = before[slice(*old)], after[slice(*new)]
        if max(labels.shape[slice(*old)], default=1) == 1:
            labels = _with(labels, old, (1,) * len(goal))
        elif len(sizes) == len(goal) == 1:
            continue
        elif all(isinstance(size, int) for size in (*sizes, *goal)):
            if math.prod(sizes) != math.prod(goal):
                return None  # the model declares a shape that it does not have
            full = np.broadcast_to(labels, (*labels.shape[: old[0]], *sizes, *labels.shape[old[1] :]))  # type: ignore[arg-type]
            labels = without_repeats(_with(full, old, goal), range(old[0], old[0] + len(goal)))  # type: ignore[arg-type]
        else:
            return None
    return labels


def _with(labels: Labels, span: _Span, sizes: Sequence[int]) -> Labels:
    return labels.reshape(*labels.shape[: span[0]], *sizes, *labels.shape[span[1] :])


def without_repeats(labels: Labels, axes: Sequence[int]) -> Labels:
    """Reduce ``labels`` to size 1 along those of ``axes`` where they do not change."""
    for axis in axes:
        first = labels.take([0], axis) if labels.shape[axis] else labels
        if (labels == first).all():
            labels = first
    return labels


def _blocks(before: Dims, after: Dims) -> Iterator[tuple[_Span, _Span]]:
    """Yield the axes of each block before and after, last block first.

    Axes between the matching ones at both ends, perhaps of unknown sizes, form one block.
    """
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
    """Return the first axes, before and after, of the shortest trailing blocks with equally many elements."""
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
    """Whether two dimensions are known to have the same size, as numbers or as symbols."""
    if isinstance(one, ir.SymbolicDim) and one.value is None:
        return False
    return one == other


FIXED = 0
"""The label of fixed channels, which are neither scaled nor shifted."""


@dataclass(frozen=True)
class ScaleFold:
    """A constant that absorbs factors: it is multiplied by ``s[up]`` and divided by ``s[down]``.

    Attributes:
        node: name of the node that reads the constant.
        index: position of the constant among its inputs.
        up: labels of the factors to multiply by; broadcast with the constant, which may grow.
        down: labels of the factors to divide by; broadcast in the same way.
    """

    node: str
    index: int
    up: Labels
    down: Labels


@dataclass(frozen=True)
class Channels:
    """The labels of the channels of a graph.

    Attributes:
        labels: labels by name of the tensor, for the tensors that rules have labelled. The arrays have the
            rank of the tensor, and size 1 along every axis on which the labels do not change.
        count: number of labels, including `FIXED`.
        folds: the constants that absorb factors.
    """

    labels: Mapping[str, Labels]
    count: int
    folds: tuple[ScaleFold, ...]

    def of(self, tensor: str) -> Labels:
        """Return the labels of a tensor; a single `FIXED` if it has none."""
        return self.labels.get(tensor, np.full((), FIXED, np.int64))


class ChannelUnion:
    """A builder of `Channels`: rules read the labels of inputs, set those of outputs, and merge labels."""

    def __init__(self) -> None:
        self._count = 1
        self._labels: dict[ir.Value, Labels] = {}
        self._pairs: list[tuple[Labels, Labels]] = []
        self._folds: list[ScaleFold] = []

    def of(self, value: ir.Value | None) -> Labels:
        """Return the labels of a tensor that is not constant; `FIXED` if none are set."""
        if value in self._labels:
            return self._labels[value]
        rank = 0 if value is None or value.shape is None else len(value.shape)
        return np.full((1,) * rank, FIXED, np.int64)

    def set(self, value: ir.Value, labels: Labels) -> None:
        """Set the labels of an output of a node."""
        self._labels[value] = labels

    def fresh(self, shape: Sequence[int]) -> Labels:
        """Return an array of new, distinct labels."""
        size = int(np.prod(shape))
        self._count += size
        return np.arange(self._count - size, self._count).reshape(tuple(shape))

    def tie(self, one: Labels, other: Labels) -> None:
        """Merge labels at the same position, once both arrays are broadcast."""
        if one is not other:
            self._pairs.append((one, other))

    def hold(self, labels: Labels) -> None:
        """Fix the channels with these labels."""
        self.tie(labels, np.full((), FIXED, np.int64))

    def fold(self, node: ir.Node, index: int, up: Labels | None = None, down: Labels | None = None) -> None:
        """Let a constant absorb factors.

        Args:
            node: the node that reads the constant.
            index: position of the constant among its inputs.
            up: labels of the factors to multiply the constant by; None for none.
            down: labels of the factors to divide the constant by; None for none.
        """
        none = np.full((), FIXED, np.int64)
        self._folds.append(
            ScaleFold(name_of(node), index, none if up is None else up, none if down is None else down)
        )

    def finish(self) -> Channels:
        """Return the labels after all merges, renumbered from 0 without gaps."""
        final = _merged(self._count, self._pairs)
        folds = [ScaleFold(f.node, f.index, final[f.up], final[f.down]) for f in self._folds]
        labels = {
            name_of(value): without_repeats(final[ids], range(ids.ndim))
            for value, ids in self._labels.items()
        }
        return Channels(
            labels=labels,
            count=int(final.max()) + 1,
            folds=tuple(fold for fold in folds if fold.up.any() or fold.down.any()),
        )


Rule = Callable[[ir.Node, ChannelUnion], Sequence[Labels] | None]
"""Merges labels of the inputs of a node, and returns those of its outputs; None to fix inputs and outputs."""


def find_channels(model: ir.Model, rules: Mapping[str, Rule]) -> Channels:
    """Return the labels of the main graph of ``model``, which must have named nodes and known shapes.

    Fixed are the inputs and outputs of operators without a rule, the inputs and outputs of the graph, and all
    tensors that the bodies of control-flow operators read.
    """
    ties = ChannelUnion()
    for node in model.graph:
        rule = rules.get(node.op_type) if node.domain == "" and computes_floats(node) else None
        outputs = rule(node, ties) if rule is not None else None
        if outputs is None and node.op_type not in _SHAPE_ONLY:
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


_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_SHAPE_ONLY = frozenset({"Shape", "Size"})
"""Operators that read the shape of a tensor, but not its values."""


def computes_floats(node: ir.Node) -> bool:
    """Whether the first output of the node is float32, or in half precision."""
    return bool(node.outputs) and node.outputs[0].dtype in _FLOATS


def hold_inputs(node: ir.Node, ties: ChannelUnion, but: Sequence[int] = ()) -> None:
    """Fix the inputs of a node that are not constant.

    Args:
        node: the node.
        ties: the labels.
        but: positions of inputs to leave out.
    """
    for index, value in enumerate(node.inputs):
        if index not in but and value is not None and constant_value(value) is None:
            ties.hold(ties.of(value))


def _merged(count: int, pairs: Sequence[tuple[Labels, Labels]]) -> NDArray[np.int64]:
    """Return the number of the class of each of ``count`` labels, after merging ``pairs``; `FIXED` stays 0.

    Every class is represented by its least label, found by repeated pointer jumping.
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
