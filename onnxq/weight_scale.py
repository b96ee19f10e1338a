"""The weight scale with the least squared rounding error, a channel at a time.

``min over s of sum (w - s * clip(round(w / s)))^2``, tried at fixed multiples of the scale that just
covers the largest weight. Rounding errors depend on how the weights of a channel happen to fall on the
grid, so scales a little larger win as often as smaller ones, which clip.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.plan import QuantParams, QuantSpec

MULTIPLES = np.linspace(0.8, 1.2, 41)
"""1 is among them, so the result is never worse than the scale it starts from."""

SAMPLE = 512
"""Weights of a channel that the multiples are tried on, evenly spread over all. The winner must then
beat the scale it started from on all of them."""

BLOCK = 2**20
"""Weights looked at together, to bound the memory. A channel is never cut."""


def refine_scale(weight: NDArray[np.generic], params: QuantParams, spec: QuantSpec) -> QuantParams:
    """``params`` with a better scale; same shape (``()`` or ``[C]``), symmetric grids only.

    Args:
        weight: any shape; its axis ``spec.axis`` has C entries.
        params: what covers the range of the weights.
        spec: the number format.
    """
    axis = spec.axis
    if not spec.symmetric or weight.size == 0:
        return params
    channels = 1 if axis is None else weight.shape[axis]
    rows = np.moveaxis(weight, axis or 0, 0).reshape(channels, -1)
    scales = params.scale.reshape(-1)
    middle = int(params.zero_point.reshape(-1)[0])
    limits = (spec.limits[0] - middle, spec.limits[1] - middle)
    step = max(1, BLOCK // rows.shape[1])
    blocks = (slice(start, start + step) for start in range(0, channels, step))
    best = np.concatenate([_best(rows[b].astype(np.float32), scales[b], limits) for b in blocks])
    return QuantParams(best.reshape(params.scale.shape), params.zero_point)


def _best(
    rows: NDArray[np.float32], scales: NDArray[np.float32], limits: tuple[int, int]
) -> NDArray[np.float32]:
    """The best scale of each row. rows [C, K], scales [C] -> [C]."""
    sample = rows[:, :: -(-rows.shape[1] // SAMPLE)]
    best, least = scales, np.full(len(rows), np.inf)
    for multiple in MULTIPLES:
        tried = (scales * multiple).astype(np.float32)
        error = _error(sample, tried, limits)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return np.where(_error(rows, best, limits) < _error(rows, scales, limits), best, scales)


def _error(
    rows: NDArray[np.float32], scales: NDArray[np.float32], limits: tuple[int, int]
) -> NDArray[np.float64]:
    """Sum over each row of the squared rounding errors. [C, K], [C] -> [C]."""
    levels = np.rint(rows / scales[:, None]).clip(*limits)
    return np.asarray(np.square(rows - levels * scales[:, None]).sum(axis=1, dtype=np.float64))
