"""The terms of the noise that factors of channels can change, of a plan and of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.balance import Reals, Step, Term, Weights
from onnxq.algorithms.channel_moments import Moments
from onnxq.algorithms.channels import Channels
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers import Layer, layers, matrices, weights_of
from onnxq.algorithms.reshaping import Labels
from onnxq.plan import Group

WEIGHT_SHARE = 0.5
"""What is left of the weights' noise once they are rounded with an eye on their inputs."""


@dataclass(frozen=True)
class _Reader:
    """A layer beside what the channels are to it.

    Attributes:
        layer: the layer.
        output: the tensor that it computes.
        weight: [G, O, C, taps].
        columns: [G, C], the labels of its input.
        rows: [G, O], the labels of its output.
    """

    layer: Layer
    output: str
    weight: np.typing.NDArray[np.float32]
    columns: Labels
    rows: Labels

    @property
    def is_free(self) -> bool:
        """Whether factors change the noise of its weights, or that of its input."""
        return bool(self.columns.any() or (self.rows.any() and self.layer.weight.spec.axis is None))


class Outlook:
    """The terms of the noise that the channels of a draft can change.

    Attributes:
        needed: the tensors to be measured.
    """

    def __init__(self, draft: Draft, channels: Channels) -> None:
        """What of ``draft.exact`` and its plan has channels that are not fixed."""
        self._channels = channels
        nodes = {node.name: node for node in draft.exact.graph}
        found = (_reader(one, nodes[one.name], channels) for one in layers(draft.exact, draft.plan))
        self._readers = [reader for reader in found if reader.is_free]
        groups = draft.plan.groups.values()
        self._groups = [g for g in groups if any(channels.of(name).any() for name in g.observe)]
        weighted = {reader.layer.name for reader in self._readers}
        self._shared = {point.tensor for point in draft.plan.points if point.consumer not in weighted}
        self.needed = tuple(dict.fromkeys(self._needed()))

    def _needed(self) -> list[str]:
        ends = [name for reader in self._readers for name in (reader.layer.data.tensor, reader.output)]
        observed = [name for group in self._groups for name in group.observe]
        return [*ends, *observed]

    def terms(self, seen: Mapping[str, Moments]) -> list[Term]:
        """One for every scale and one for the weights of every layer, from moments of all `needed`."""
        gains = [1 / (seen[reader.output].variance.sum() or np.inf) for reader in self._readers]
        reach = self._reach(gains)
        weights = [_weights(reader, seen, gain) for reader, gain in zip(self._readers, gains, strict=True)]
        return [*(self._step(group, seen, reach) for group in self._groups), *weights]

    def _reach(self, gains: Sequence[float]) -> dict[str | None, Reals]:
        """How much of a channel's noise the layers give on: those that read a tensor; None: all, by label."""
        reach: dict[str | None, Reals] = {None: np.zeros(self._channels.count)}
        for reader, gain in zip(self._readers, gains, strict=True):
            each = np.square(reader.weight).sum(axis=(1, 3), dtype=np.float64).reshape(-1) * gain
            labels = reader.columns.reshape(-1)
            reach[None] += np.bincount(labels, each, self._channels.count)
            name = reader.layer.data.tensor
            reach[name] = reach.get(name, 0.0) + each
        return reach

    def _step(self, group: Group, seen: Mapping[str, Moments], reach: Mapping[str | None, Reals]) -> Step:
        """All channels of all tensors that decide on a scale."""
        parts = [self._part(name, group, seen[name], reach) for name in group.observe]
        labels, high, low, gain = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        lowest, highest = group.spec.limits
        return Step(labels, high, low, gain, highest - lowest, group.spec.symmetric)

    def _part(
        self, name: str, group: Group, seen: Moments, reach: Mapping[str | None, Reals]
    ) -> tuple[Labels, Reals, Reals, Reals]:
        """Labels, largest values, negated smallest ones and gains of one tensor."""
        labels = self._channels.of(name).reshape(-1)
        high, low, silent = seen.ends()
        low, high = -np.clip(low, group.bounds[0], 0.0), np.clip(high, 0.0, group.bounds[1])
        gain = reach[None][labels] if name in self._shared or name not in reach else reach[name]
        return labels, high, low, np.where(silent, 0.0, np.broadcast_to(gain, labels.shape))


def _reader(layer: Layer, node: ir.Node, channels: Channels) -> _Reader:
    values, output = weights_of(node), node.outputs[0].name or ""
    assert values is not None
    matrix = matrices(node, values)
    groups, outputs, columns = matrix.shape
    inputs = _inputs(node, values.shape, columns)
    taps = columns // inputs
    labels = np.broadcast_to(channels.of(layer.data.tensor).reshape(-1), groups * inputs)
    rows = np.broadcast_to(channels.of(output).reshape(-1), groups * outputs)
    weight = matrix.reshape(groups, outputs, inputs, taps)
    return _Reader(layer, output, weight, labels.reshape(groups, -1), rows.reshape(groups, -1))


def _inputs(node: ir.Node, shape: Sequence[int], columns: int) -> int:
    """Input channels of a group: what is not taps of the kernel."""
    return columns // int(np.prod(shape[2:])) if "Conv" in node.op_type else columns


def _weights(reader: _Reader, seen: Mapping[str, Moments], gain: float) -> Weights:
    spec, variance = reader.layer.weight.spec, seen[reader.layer.data.tensor].variance
    lowest, highest = spec.limits
    return Weights(
        size=np.abs(reader.weight).max(axis=3),
        columns=reader.columns,
        rows=reader.rows,
        spread=np.broadcast_to(variance, reader.columns.size).reshape(reader.columns.shape)
        * reader.weight.shape[3],
        levels=(highest - lowest) // 2,
        per_row=spec.axis is not None,
        gain=gain * WEIGHT_SHARE,
    )
