"""The optimizer of AdaRound for one layer in matrix form: learn to round each weight up or down.

A weight becomes ``scale * (below + h)`` with ``h = clip(1.2 sigmoid(V) - 0.1, 0, 1)``. The loss is the
squared error of the layer's output after its Relu or Clip, plus ``sum 1 - |2 h - 1|^beta``, which moves every
h to 0 or 1 as beta decreases.
Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.
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
"""A torch tensor. torch is imported only where it is used, because it is optional."""

ITERATIONS = 500
ROWS_A_STEP = 256
"""The number of randomly selected rows in an iteration."""
LEARNING_RATE = 0.05

WARM_UP = 0.2
"""The share of the iterations at the start without the term that moves h to 0 or 1."""

TIMED = 10
"""The number of iterations that are timed to find how many the time limit allows; all of them are warm-up."""

BETA = (20.0, 2.0)
"""The first and the last value of beta."""

PRESSURE = 100.0
"""The weight of the rounding term, if the error of the outputs is normalized to the number of weights."""

TRUST = 0.55
"""The initial position of h between the float weight (0) and its current level (1).

It is above 0.5, so a weight that is not learned keeps its current level.
"""

STRETCH = (-0.1, 1.1)
"""The range of the stretched sigmoid."""


@dataclass(frozen=True)
class LayerProblem:
    """The rounding problem of one layer, with G groups, O outputs and K inputs per group, and n rows.

    Attributes:
        exact: the float weights divided by their scale, ``[G, O, K]``.
        levels: the current levels of the weights, zero point subtracted, ``[G, O, K]``.
        scale: the scale of each weight, ``[G, O, K]``.
        lowest: the lowest level of each weight, zero point subtracted, ``[G, O, K]``.
        highest: the highest level of each weight, zero point subtracted, ``[G, O, K]``.
        rows: the input rows of the layer in the quantized model, ``[G, n, K]``.
        wanted: the outputs of the float layer after its Relu or Clip, ``[G, n, O]``.
        bias: the bias of the quantized layer, ``[G, 1, O]``.
        limits: the limits of the Relu or Clip; infinite if there is none.
        biased: whether the layer has a bias, which is then learned too.
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
        """Compute the squared error of the outputs: the sum over output channels, the mean over rows."""
        made = self.rows @ (self.levels * self.scale).transpose(0, 2, 1) + self.bias
        off = made.clip(*self.limits) - self.wanted
        return float(np.square(off, dtype=np.float64).sum() / max(self.rows.shape[1], 1))


def check_torch() -> None:
    """Check that PyTorch is installed.

    Raises:
        ConfigError: PyTorch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "adaround needs PyTorch: pip install 'onnxq[torch]', or choose other corrections"
        ) from error


def learn(task: LayerProblem, seconds: float, seed: int, threads: int) -> LayerProblem:
    """Learn the levels and the bias of a layer, to reduce its output error.

    The same seed and number of threads give the same result, if the time suffices for all iterations. If not,
    the number of iterations depends on the machine.

    Args:
        task: the rounding problem.
        seconds: the time limit.
        seed: the seed of the random selection of rows.
        threads: the number of threads of PyTorch.

    Returns:
        The problem with the learned levels and bias; ``task`` itself if it has no error or there is no time.
    """
    error = task.error()
    if error == 0 or seconds <= 0:
        return task
    with _threads(threads):
        return _learn(_Soft(task, error, seed), seconds)


def _learn(soft: _Soft, seconds: float) -> LayerProblem:
    """Run as many iterations as the time allows; the schedule of beta is adapted to their number."""
    began = time.perf_counter()
    for step in range(TIMED):
        soft.step(step / ITERATIONS)
    there_is_time_for = seconds / (time.perf_counter() - began) * TIMED
    steps = int(min(ITERATIONS, there_is_time_for))
    for step in range(TIMED, steps):
        soft.step(step / steps)
    return soft.layer_problem()


class _Soft:
    """A rounding problem as tensors, with the learned parameters: V, and a shift of the bias."""

    def __init__(self, task: LayerProblem, error: float, seed: int) -> None:
        """Create the tensors and the optimizer.

        Args:
            task: the rounding problem.
            error: its initial error, which normalizes the loss and the shift of the bias.
            seed: the seed of the random selection of rows.
        """
        import torch

        self._task = task
        self._unit = error / task.levels.size  # the mean error per weight
        self._shift_unit = (error / task.bias.size) ** 0.5
        self._generator = torch.Generator().manual_seed(seed)
        self._rows, self._wanted = torch.from_numpy(task.rows), torch.from_numpy(task.wanted)
        self._bias, self._scale = torch.from_numpy(task.bias), torch.from_numpy(task.scale)
        self._below = torch.from_numpy(_below(task))
        self._v = torch.from_numpy(_start(task)).requires_grad_()
        self._shift = torch.zeros_like(self._bias, requires_grad=task.biased)
        self._adam = torch.optim.Adam([self._v, *[self._shift] * task.biased], lr=LEARNING_RATE)

    def step(self, done: float) -> None:
        """Run one iteration; ``done`` is the share of the iterations before it."""
        h = _up(self._v)
        loss = self._error(h) / self._unit
        if done >= WARM_UP:
            loss = loss + PRESSURE * (1 - (2 * h - 1).abs().pow(_beta(done))).sum()
        self._adam.zero_grad()
        loss.backward()
        self._adam.step()

    def layer_problem(self) -> LayerProblem:
        """Return the problem with the learned bias, and each weight at the nearer of its two levels."""
        levels = np.asarray(self._below + (_up(self._v.detach()) > 0.5), np.float32)
        return replace(self._task, levels=levels, bias=self._moved().detach().numpy())

    def _moved(self) -> Tensor:
        return self._bias + self._shift * self._shift_unit

    def _error(self, h: Tensor) -> Tensor:
        """Compute the squared error of the outputs, the mean over randomly selected rows."""
        import torch

        count = self._rows.shape[1]
        chosen = torch.randint(count, (min(ROWS_A_STEP, count),), generator=self._generator)
        weights = ((self._below + h) * self._scale).transpose(1, 2)
        made = (self._rows[:, chosen] @ weights + self._moved()).clamp(*self._task.limits)
        return (made - self._wanted[:, chosen]).square().sum() / len(chosen)


def _below(task: LayerProblem) -> Floats:
    """Return the lower one of the two levels that a weight can get.

    One of the two is its current level; the other one is the next level in the direction of the float weight.
    """
    return np.floor(task.exact).clip(task.levels - 1, task.levels).clip(task.lowest, task.highest - 1)


def _start(task: LayerProblem) -> Floats:
    """Compute the initial V: h lies between the float weight and its current level."""
    (low, high), below = STRETCH, _below(task)
    h = (1 - TRUST) * (task.exact - below).clip(0, 1) + TRUST * (task.levels - below)
    share = (h - low) / (high - low)
    return np.asarray(np.log(share / (1 - share)), np.float32)


def _up(v: Tensor) -> Tensor:
    low, high = STRETCH
    return (v.sigmoid() * (high - low) + low).clamp(0, 1)


def _beta(done: float) -> float:
    """Return beta, which decreases along half a cosine after the warm-up."""
    share = (done - WARM_UP) / (1 - WARM_UP)
    return float(BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + np.cos(np.pi * share)))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Set the number of threads of torch within a ``with`` block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
