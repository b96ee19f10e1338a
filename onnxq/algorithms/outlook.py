"""The terms of the noise that factors of channels can change, of a plan and of what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.algorithms.balance import Reals, Step, Term, Weights
from onnxq.algorithms.channel_moments import ChannelMoments
from onnxq.algorithms.channels import Channels
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers import matrices_of, weights_of
from onnxq.algorithms.reshaping import Labels
from onnxq.operators import WEIGHTED
from onnxq.plan import Group, QuantSpec

WEIGHT_SHARE = 0.5
"""What is left of the weights' noise once they are rounded with an eye on their inputs."""


ROWS = 256
"""Of the rows of a matrix, each with a scale of its own, about so many stand for all."""


@dataclass(frozen=True)
class _Reader:
    """A node with constant weights, beside what the channels are to it.

    Attributes:
        data: the tensor that it reads.
        output: the tensor that it computes.
        spec: the number format of its weights; None: they are float, and only hear the noise of its input.
        weight: [G, O, C, taps].
        columns: [G, C], the labels of its input.
        rows: [G, O], the labels of its output.
    """

    data: str
    output: str
    spec: QuantSpec | None
    weight: NDArray[np.float32]
    columns: Labels
    rows: Labels

    @property
    def is_free(self) -> bool:
        """Whether factors change the noise of its weights, or that of its input."""
        one_scale = self.spec is not None and self.spec.axis is None
        return bool(self.columns.any() or (self.rows.any() and one_scale))


class Outlook:
    """The terms of the noise that the channels of a draft can change.

    Attributes:
        needed: the tensors to be measured.
    """

    def __init__(self, draft: Draft, channels: Channels) -> None:
        """What of ``draft.exact`` and its plan has channels that are not fixed."""
        self._channels = channels
        self._readers = [reader for reader in _readers(draft, channels) if reader.is_free]
        groups = draft.plan.groups.values()
        self._groups = [g for g in groups if any(channels.of(name).any() for name in g.observe)]
        known = {reader.output for reader in self._readers}
        self._shared = {
            value.name
            for node in draft.exact.graph
            for value in node.inputs
            if value is not None and node.outputs[0].name not in known
        }
        self.needed = tuple(dict.fromkeys(self._needed()))

    def _needed(self) -> list[str]:
        ends = [name for reader in self._readers for name in (reader.data, reader.output)]
        observed = [name for group in self._groups for name in group.observe]
        return [*ends, *observed]

    def terms(self, seen: Mapping[str, ChannelMoments]) -> list[Term]:
        """One for every scale and one for the weights of every layer: what noise each makes.

        How noise spreads over channels is taken from the layers that read them, and all layers count alike:
        noise is held against the variance of their outputs. What of it reaches the outputs of the model could
        be measured, each tensor quantized alone; that takes time, and gave no better factors.

        Args:
            seen: moments of all `needed`.
        """
        gains = [1 / (seen[reader.output].variance.sum() or np.inf) for reader in self._readers]
        reach = self._reach(gains)
        steps = [self._step(group, seen, reach) for group in self._groups]
        weights = [
            _weights(reader, reader.spec, seen, gain)
            for reader, gain in zip(self._readers, gains, strict=True)
            if reader.spec is not None
        ]
        return [*steps, *weights]

    def _reach(self, gains: Sequence[float]) -> dict[str | None, Reals]:
        """How much of a channel's noise the layers give on: those that read a tensor; None: all, by label."""
        reach: dict[str | None, Reals] = {None: np.zeros(self._channels.count)}
        for reader, gain in zip(self._readers, gains, strict=True):
            each = np.square(reader.weight).sum(axis=(1, 3), dtype=np.float64).reshape(-1) * gain
            labels = reader.columns.reshape(-1)
            reach[None] += np.bincount(labels, each, self._channels.count)
            reach[reader.data] = reach.get(reader.data, 0.0) + each
        return reach

    def _step(
        self, group: Group, seen: Mapping[str, ChannelMoments], reach: Mapping[str | None, Reals]
    ) -> Step:
        """All channels of all tensors that decide on a scale."""
        parts = [self._part(name, group, seen[name], reach) for name in group.observe]
        labels, high, low, gain = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        lowest, highest = group.spec.limits
        return Step(labels, high, low, gain, highest - lowest, group.spec.symmetric)

    def _part(
        self, name: str, group: Group, seen: ChannelMoments, reach: Mapping[str | None, Reals]
    ) -> tuple[Labels, Reals, Reals, Reals]:
        """Labels, largest values, negated smallest ones and gains of one tensor."""
        labels = self._channels.of(name).reshape(-1)
        high, low, silent = seen.ends()
        low, high = -np.clip(low, group.bounds[0], 0.0), np.clip(high, 0.0, group.bounds[1])
        gain = reach[None][labels] if name in self._shared or name not in reach else reach[name]
        return labels, high, low, np.where(silent, 0.0, np.broadcast_to(gain, labels.shape))


def _readers(draft: Draft, channels: Channels) -> Iterator[_Reader]:
    """The nodes with matrices of constant weights that read something quantized, or are so themselves."""
    specs = {(point.consumer, point.input_index): point.spec for point in draft.plan.points}
    quantized = {point.tensor for point in draft.plan.points}
    for node in draft.exact.graph:
        if (matrix := matrices_of(node)) is not None:
            data = node.inputs[WEIGHTED[node.op_type].data]
            spec = specs.get((node.name or "", WEIGHTED[node.op_type].weight))
            if data is not None and (spec is not None or data.name in quantized):
                yield _reader(node, data.name or "", spec, matrix, channels)


def _reader(
    node: ir.Node, data: str, spec: QuantSpec | None, matrix: NDArray[np.float32], channels: Channels
) -> _Reader:
    values, output = weights_of(node), node.outputs[0].name or ""
    assert values is not None
    groups, outputs, columns = matrix.shape
    inputs = _inputs(node, values.shape, columns)
    labels = np.broadcast_to(channels.of(data).reshape(-1), groups * inputs)
    rows = np.broadcast_to(channels.of(output).reshape(-1), groups * outputs)
    weight = matrix.reshape(groups, outputs, inputs, columns // inputs)
    return _Reader(data, output, spec, weight, labels.reshape(groups, -1), rows.reshape(groups, -1))


def _inputs(node: ir.Node, shape: Sequence[int], columns: int) -> int:
    """Input channels of a group: what is not taps of the kernel."""
    return columns // int(np.prod(shape[2:])) if "Conv" in node.op_type else columns


def _weights(reader: _Reader, spec: QuantSpec, seen: Mapping[str, ChannelMoments], gain: float) -> Weights:
    variance = seen[reader.data].variance
    lowest, highest = spec.limits
    every = 1 if spec.axis is None else max(1, reader.weight.shape[1] // ROWS)
    return Weights(
        size=np.abs(reader.weight[:, ::every]).max(axis=3),
        columns=reader.columns,
        rows=reader.rows[:, ::every],
        spread=np.broadcast_to(variance, reader.columns.size).reshape(reader.columns.shape)
        * reader.weight.shape[3],
        levels=(highest - lowest) // 2,
        per_row=spec.axis is not None,
        gain=gain * WEIGHT_SHARE * reader.weight.shape[1] / len(range(0, reader.weight.shape[1], every)),
    )
