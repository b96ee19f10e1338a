"""The tensors of the float model, which the parts that run again read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.algorithms.watching import Arrays, Watcher
from onnxq.graph.nodes import name_of
from onnxq.graph.tensor_bytes import tensor_bytes

KEPT_BYTES = 512 * 2**20
"""The memory limit for the kept tensors of the float model. Beyond it, the float model runs again."""


@dataclass(frozen=True)
class FloatTensors:
    """Runs the float model for its tensors: once, if all of them fit into memory.

    Attributes:
        model: the float model.
        watcher: runs it. The runtime fuses around the tensors that are asked for, which changes their last
            bits; it must not, so that a tensor is the same with whatever others it is asked for.
        samples: the batches.
    """

    model: ir.Model
    watcher: Watcher
    samples: Sequence[Sample]

    def fit(self, names: Collection[str]) -> bool:
        """Whether these tensors, for all batches, fit into memory together."""
        return sum(self._sizes.get(name, 0) for name in names) <= KEPT_BYTES

    def of(self, names: Collection[str]) -> list[Arrays]:
        """Return the inputs and at least these tensors, batch by batch."""
        return self._all if self.fit(self._sizes) else self._run(names)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """The estimated number of bytes of each tensor of the main graph, for all batches."""
        names = {out.name for node in self.model.graph for out in node.outputs if out.name}
        sizes = tensor_bytes(self.model, names, self.samples[0].feeds)
        unknown = sorted(names - sizes.keys())
        if unknown:
            (measured,) = self.watcher.watch(self.model, unknown, _bytes, self.samples[:1])
            sizes |= measured
        return {name: size * len(self.samples) for name, size in sizes.items()}

    @cached_property
    def _all(self) -> list[Arrays]:
        return self._run(self._sizes)

    def _run(self, names: Collection[str]) -> list[Arrays]:
        given = {name_of(value) for value in self.model.graph.inputs}
        wanted, plain = sorted(set(names) - given), replace(self.watcher, optimize=False)
        runs = plain.watch(self.model, wanted, lambda _, arrays: arrays, self.samples)
        return [{**sample.feeds, **arrays} for sample, arrays in zip(self.samples, runs, strict=True)]


def _bytes(_: int, arrays: Arrays) -> dict[str, int]:
    return {name: getattr(array, "nbytes", 0) for name, array in arrays.items()}
