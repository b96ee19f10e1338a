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

BLOCK = 2**20
"""Weights looked at together, which bounds the memory."""


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
    step = max(1, BLOCK // rows.shape[1])
    blocks = (slice(start, start + step) for start in range(0, len(rows), step))
    best = np.concatenate([_best(rows[b].astype(np.float32), scales[b], params, spec) for b in blocks])
    return QuantParams(best.reshape(params.scale.shape), params.zero_point)


def _best(
    rows: NDArray[np.float32], scales: NDArray[np.float32], params: QuantParams, spec: QuantSpec
) -> NDArray[np.float32]:
    """The best scale of each row. rows [C, K], scales [C] -> [C]."""
    middle = int(params.zero_point.reshape(-1)[0])
    qmin, qmax = (limit - middle for limit in spec.limits)
    best, least = scales, np.full(len(rows), np.inf)
    for multiple in MULTIPLES:
        tried = (scales * multiple).astype(np.float32)
        levels = np.rint(rows / tried[:, None]).clip(qmin, qmax)
        error = np.square(rows - levels * tried[:, None]).sum(axis=1, dtype=np.float64)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return best
