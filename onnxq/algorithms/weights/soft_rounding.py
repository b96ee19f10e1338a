"""Up or down for each weight, learned by gradients: the loop of AdaRound, on one layer in matrix form.

A weight becomes ``scale * (below + h)``, ``h = clip(1.2 sigmoid(V) - 0.1, 0, 1)``. What is minimised is the
squared error of the layer's output, behind its Relu or Clip, plus ``sum 1 - |2 h - 1|^beta``, which drives
every h to 0 or 1 as beta falls. Nagel et al., "Up or Down? Adaptive Rounding", 2020.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxq.core.errors import ConfigError

Floats = NDArray[np.float32]
Tensor: TypeAlias = Any
"""One of torch, which is not imported before it is needed."""

ITERATIONS = 500
ROWS_A_STEP = 256
"""Of the rows, a random selection."""
LEARNING_RATE = 0.05

WARM_UP = 0.2
"""The share of the iterations before the first h is driven anywhere."""

TIMED = 10
"""Iterations, all of the warm-up, that tell how many there is time for."""

BETA = (20.0, 2.0)
PRESSURE = 100.0
"""Of the term that drives h, when the error of the outputs counts as much as there are weights."""

TRUST = 0.55
"""How far h starts from the weight itself, towards the level that it has so far. Above one half: what is
not learned stays as it was."""

STRETCH = (-0.1, 1.1)


@dataclass(frozen=True)
class LayerProblem:
    """A layer whose weights are to be rounded. G groups of O outputs and K inputs, n rows.

    Attributes:
        exact: the weights in units of their scale, ``[G, O, K]``.
        levels: the whole numbers that they are rounded to so far, zero point subtracted.
        scale: of each.
        lowest, highest: levels that there are, zero point subtracted; of each.
        rows: what the quantized layer multiplies with, ``[G, n, K]``.
        wanted: what the float layer makes of the same rows, behind its Relu or Clip, ``[G, n, O]``.
        bias: of the quantized layer, ``[G, 1, O]``.
        limits: of the Relu or Clip; infinite where there is none.
        biased: the layer has a place for another bias: it is learned too.
    """

    exact: Floats
    levels: Floats
    scale: Floats
    lowest: Floats
    highest: Floats
    rows: Floats
    wanted: Floats
    bias: Floats
    limits: tuple[float, float]
    biased: bool = False

    def error(self) -> float:
        """The mean over rows of the squared error of the outputs."""
        made = self.rows @ (self.levels * self.scale).transpose(0, 2, 1) + self.bias
        off = made.clip(*self.limits) - self.wanted
        return float(np.square(off, dtype=np.float64).sum() / max(self.rows.shape[1], 1))


def check_torch() -> None:
    """Make sure that there is a torch.

    Raises:
        ConfigError: there is none.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "adaround needs PyTorch: pip install 'onnxq[torch]', or correct otherwise"
        ) from error


def learn(task: LayerProblem, seconds: float, seed: int, threads: int) -> LayerProblem:
    """``task`` with levels, and a bias, that have less error on its rows; unchanged without error, or time.

    The same bits for the same seed and number of threads, as long as ``seconds`` suffice for all iterations;
    if not, fewer are made, how many depends on the machine.
    """
    error = task.error()
    if error == 0 or seconds <= 0:
        return task
    with _threads(threads):
        return _learn(_Soft(task, error, seed), seconds)


def _learn(soft: _Soft, seconds: float) -> LayerProblem:
    """As many iterations as there is time for, and from the warm-up on a schedule for so many."""
    began = time.perf_counter()
    for step in range(TIMED):
        soft.step(step / ITERATIONS)
    there_is_time_for = seconds / (time.perf_counter() - began) * TIMED
    steps = int(min(ITERATIONS, there_is_time_for))
    for step in range(TIMED, steps):
        soft.step(step / steps)
    return soft.layer_problem()


class _Soft:
    """A task as tensors, and what is learned: V, and a shift of the bias."""

    def __init__(self, task: LayerProblem, error: float, seed: int) -> None:
        """``error``: that of the task, by which everything is measured."""
        import torch

        self._task = task
        self._unit = error / task.levels.size  # what a weight answers for on average
        self._shift_unit = (error / task.bias.size) ** 0.5
        self._generator = torch.Generator().manual_seed(seed)
        self._rows, self._wanted = torch.from_numpy(task.rows), torch.from_numpy(task.wanted)
        self._bias, self._scale = torch.from_numpy(task.bias), torch.from_numpy(task.scale)
        self._below = torch.from_numpy(_below(task))
        self._v = torch.from_numpy(_start(task)).requires_grad_()
        self._shift = torch.zeros_like(self._bias, requires_grad=task.biased)
        self._adam = torch.optim.Adam([self._v, *[self._shift] * task.biased], lr=LEARNING_RATE)

    def step(self, done: float) -> None:
        """One iteration, when this share of them is over."""
        h = _up(self._v)
        loss = self._error(h) / self._unit
        if done >= WARM_UP:
            loss = loss + PRESSURE * (1 - (2 * h - 1).abs().pow(_beta(done))).sum()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def layer_problem(self) -> LayerProblem:
        """With the bias as it was learned, and each weight at the level that it is nearer to."""
        levels = np.asarray(self._below + (_up(self._v.detach()) > 0.5), np.float32)
        return replace(self._task, levels=levels, bias=self._moved().detach().numpy())

    def _moved(self) -> Tensor:
        return self._bias + self._shift * self._shift_unit

    def _error(self, h: Tensor) -> Tensor:
        """Of the outputs, the mean over some rows."""
        import torch

        count = self._rows.shape[1]
        chosen = torch.randint(count, (min(ROWS_A_STEP, count),), generator=self._generator)
        weights = ((self._below + h) * self._scale).transpose(1, 2)
        made = (self._rows[:, chosen] @ weights + self._moved()).clamp(*self._task.limits)
        return (made - self._wanted[:, chosen]).square().sum() / len(chosen)


def _below(task: LayerProblem) -> Floats:
    """The lower of two levels, one of which the weight has so far; the other is nearer to the weight."""
    return np.floor(task.exact).clip(task.levels - 1, task.levels).clip(task.lowest, task.highest - 1)


def _start(task: LayerProblem) -> Floats:
    """V with h between the weight and its level so far."""
    (low, high), below = STRETCH, _below(task)
    h = (1 - TRUST) * (task.exact - below).clip(0, 1) + TRUST * (task.levels - below)
    share = (h - low) / (high - low)
    return np.asarray(np.log(share / (1 - share)), np.float32)


def _up(v: Tensor) -> Tensor:
    low, high = STRETCH
    return (v.sigmoid() * (high - low) + low).clamp(0, 1)


def _beta(done: float) -> float:
    """Falls along half a cosine, once the warm-up is over."""
    share = (done - WARM_UP) / (1 - WARM_UP)
    return float(BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + np.cos(np.pi * share)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use so many threads, for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
