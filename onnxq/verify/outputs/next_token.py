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
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.data.synthetic import id_bounds

Array = NDArray[np.generic]
Floats = NDArray[np.float32]

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
    """

    size: int
    inputs: tuple[str, ...]

    def gives_logits(self, output: Array) -> bool:
        """Whether an output is logits over these ids."""
        if output.dtype.kind != "f" or output.ndim < 2 or not output.size:
            return False
        return bool(self.size <= output.shape[-1] <= FILLED_UP * self.size)

    def ids(self, feeds: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Return the ids that were fed at the positions of an output; None if none are known."""
        given = (np.asarray(feeds[name]) for name in self.inputs if name in feeds)
        return next((each.astype(np.int64) for each in given if each.shape == shape), None)


def find_vocabulary(model: ir.Model) -> Vocabulary | None:
    """Find the largest table that ids are looked up in; None if there is none."""
    bounds = id_bounds(model)
    size = max(bounds.values(), default=0)
    if size < FEWEST:
        return None
    return Vocabulary(size, tuple(name for name, bound in bounds.items() if bound == size))


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

    def add(self, reference: Array, actual: Array, ids: NDArray[np.int64] | None) -> None:
        """Add the logits of one batch, ``[..., V]``, and the ids ``[...]`` at their positions, if known."""
        self.classes = reference.shape[-1]
        following = np.full(reference.shape[:-1], -1, np.int64)
        if ids is not None and ids.ndim:
            following[..., :-1] = ids[..., 1:]
        one, other = (each.reshape(-1, self.classes) for each in (reference, actual))
        step = max(1, AT_ONCE // self.classes)
        for start in range(0, len(one), step):
            part = slice(start, start + step)
            self._add(_log(one[part]), _log(other[part]), following.reshape(-1)[part])

    def _add(self, one: Floats, other: Floats, following: NDArray[np.int64]) -> None:
        self.divergence += float(np.sum(np.exp(one) * (one - other), dtype=np.float64))
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


def _log(logits: Array) -> Floats:
    """Logarithms of probabilities; what is not finite counts as an even distribution."""
    values = np.nan_to_num(np.asarray(logits, np.float32), nan=0.0, posinf=1e4, neginf=-1e4)
    values -= values.max(axis=-1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=-1, keepdims=True))
    return values
