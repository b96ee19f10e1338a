"""Compare distributions of the next token: KL divergence, and perplexity where the ids are known.

An output is logits over a vocabulary if the model looks ids up in a table and the output has a last axis of
that many classes, or of a few more that fill it up. The KL divergence is that of the quantized model's
distribution from the float model's, in nats, mean over all positions. The perplexity is the exponential of
the mean negative log probability of the id at the next position, where an input holds the ids. It is given
only where the float model predicts ids better than chance: one that fills in masked tokens predicts none at
the next position.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.synthetic import id_bounds
from onnxq.graph.nodes import name_of

Array = NDArray[np.generic]
Reals = NDArray[np.floating[Any]]

FILLED_UP = 1.05
"""How many times as many classes as ids there may be: tables are filled up to round sizes."""

FEWEST = 32
"""The fewest ids that count as a vocabulary: smaller tables are those of kinds of tokens."""

AT_ONCE = 2**22
"""The number of logits that are compared at a time."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a model takes.

    Attributes:
        size: their number.
        inputs: the inputs that hold them.
        masks: inputs of integers or truth values that are looked up nowhere: where one of them has the shape
            of the ids and holds only 0 and 1, ids at 0 fill up a batch.
    """

    size: int
    inputs: tuple[str, ...]
    masks: tuple[str, ...] = ()

    def gives_logits(self, output: Array) -> bool:
        """Whether an output is logits over these ids."""
        if output.dtype.kind != "f" or output.ndim < 2 or not output.size:
            return False
        return bool(self.size <= output.shape[-1] <= FILLED_UP * self.size)

    def following(self, feeds: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Return the id that was fed at the position after each one of an output.

        Args:
            feeds: what was fed, by the names of inputs.
            shape: the shape of the output without its last axis.

        Returns:
            The ids, ``shape``, -1 where there is none; None if no ids were fed at such positions.
        """
        ids = next(_fed(self.inputs, feeds, shape), None)
        if ids is None or not ids.ndim:
            return None
        for mask in _fed(self.masks, feeds, shape):
            if np.isin(mask, (0, 1)).all():
                ids = np.where(mask, ids, -1)
        return np.concatenate([ids[..., 1:], np.full_like(ids[..., :1], -1)], axis=-1)


def _fed(
    names: Iterable[str], feeds: Mapping[str, Any], shape: tuple[int, ...]
) -> Iterator[NDArray[np.int64]]:
    """Yield the inputs of this shape."""
    given = (np.asarray(feeds[name]) for name in names if name in feeds)
    return (each.astype(np.int64) for each in given if each.shape == shape)


def find_vocabulary(model: ir.Model) -> Vocabulary | None:
    """Find the largest table that ids are looked up in; None if there is none."""
    bounds = id_bounds(model)
    size = max(bounds.values(), default=0)
    if size < FEWEST:
        return None
    others = (value for value in model.graph.inputs if value.name not in bounds)
    return Vocabulary(
        size,
        tuple(name for name, bound in bounds.items() if bound == size),
        tuple(name_of(value) for value in others if value.dtype in _COUNTS),
    )


_COUNTS = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclass(frozen=True)
class NextToken:
    """How the distributions of the next token differ.

    Attributes:
        kl: the mean KL divergence from the float model's, in nats.
        perplexity: of the quantized model; None if ids are unknown, or not predicted.
        float_perplexity: of the float model.
    """

    kl: float
    perplexity: float | None = None
    float_perplexity: float | None = None

    def describe(self, reference: str = "float") -> str:
        """Return the figures in words.

        Args:
            reference: what the float model is called.
        """
        told = f"KL {self.kl:.4f}"
        if self.perplexity is None:
            return told
        return f"{told}, perplexity {self.perplexity:.2f} ({reference}: {self.float_perplexity:.2f})"


@dataclass
class NextTokenTally:
    """Sums over the positions of one output."""

    divergence: float = 0.0
    positions: int = 0
    lost: float = 0.0
    float_lost: float = 0.0
    predicted: int = 0
    classes: int = 0

    def add(self, reference: Array, actual: Array, following: NDArray[np.int64] | None) -> None:
        """Add the logits of one batch, ``[..., V]``, and the ids ``[...]`` that follow, if known."""
        self.classes = reference.shape[-1]
        if following is None:
            following = np.full(reference.shape[:-1], -1, np.int64)
        one, other = (each.reshape(-1, self.classes) for each in (reference, actual))
        step = max(1, AT_ONCE // self.classes)
        for start in range(0, len(one), step):
            part = slice(start, start + step)
            exact, given = (log_shares(each[part], -1, np.float32) for each in (one, other))
            self._add(exact, given, following.reshape(-1)[part])

    def _add(self, one: Reals, other: Reals, following: NDArray[np.int64]) -> None:
        self.divergence += float(divergences(one, other, -1).sum(dtype=np.float64))
        self.positions += len(one)
        known = np.flatnonzero((following >= 0) & (following < self.classes))
        self.float_lost -= float(one[known, following[known]].sum(dtype=np.float64))
        self.lost -= float(other[known, following[known]].sum(dtype=np.float64))
        self.predicted += len(known)

    def result(self) -> NextToken | None:
        """Summarize; None if there are no positions."""
        if not self.positions:
            return None
        kl = max(self.divergence / self.positions, 0.0)
        if not self.predicted or self.float_lost / self.predicted >= math.log(self.classes):
            return NextToken(kl)
        means = (lost / self.predicted for lost in (self.lost, self.float_lost))
        return NextToken(kl, *(math.exp(min(mean, 700.0)) for mean in means))


def log_shares(scores: Array, axis: int, kind: type[np.floating[Any]] = np.float64) -> Reals:
    """Return the logarithms of probabilities, whether ``scores`` are logits or probabilities already.

    Logits that are not finite count as an even distribution.

    Args:
        scores: the scores of classes.
        axis: the axis of the classes.
        kind: the type to compute in.
    """
    values = np.nan_to_num(np.asarray(scores, kind), nan=0.0, posinf=1e4, neginf=-1e4)
    if values.min(initial=0.0) >= 0 and np.allclose(values.sum(axis), 1, atol=1e-3):
        shares: Reals = np.log(np.maximum(values, 1e-12))
        return shares
    values -= values.max(axis, keepdims=True)
    logs: Reals = values - np.log(np.exp(values).sum(axis, keepdims=True))
    return logs


def divergences(exact: Reals, given: Reals, axis: int) -> Reals:
    """Return the KL divergence from each distribution to the other, in nats, from logarithms of both."""
    found: Reals = (np.exp(exact) * (exact - given)).sum(axis)
    return found
