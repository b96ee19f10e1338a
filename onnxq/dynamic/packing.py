"""Weights in fewer bits: numpy only."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics import params_from_range, quantize, spread, weight_range
from onnxq.plan import QuantSpec
from onnxq.weight_scale import refine_scale

LARGEST_HALF = float(np.finfo(np.float16).max)
"""The largest finite float16."""


@dataclass(frozen=True)
class Packed:
    """``weight = integers * scale``, nearly.

    Attributes:
        integers: of the shape of the weight.
        scale: float32, of the same rank, with 1 for each axis that shares its scale.
    """

    integers: NDArray[np.generic]
    scale: NDArray[np.float32]


def pack(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """Round to nearest; zero points are 0.

    Args:
        weight: any shape.
        spec: a symmetric and signed number format.
        axis: has a scale for each of its indices; None: one scale for all.
        refine: take the scales with the least squared error, not those that just cover the largest weights.
    """
    placed = replace(spec, axis=axis)
    params = params_from_range(*weight_range(weight, placed), placed)
    if refine:
        params = refine_scale(weight, params, placed)
    scale = spread(params.scale, placed, weight.shape)
    return Packed(quantize(weight, params, placed), scale.reshape(scale.shape or (1,) * weight.ndim))


def pack_rows(weight: NDArray[np.generic], spec: QuantSpec, axis: int | None, refine: bool = True) -> Packed:
    """The same for a stack of matrices ``[D, rows, K]``; the scale is ``[D, rows, 1]``.

    ``axis`` 1 has a scale for each row of each matrix, None one for all: ``[D, 1, 1]``.
    """
    flat = pack(weight.reshape(-1, weight.shape[-1]), spec, None if axis is None else 0, refine)
    scale = np.broadcast_to(flat.scale, (weight.shape[0], 1)) if axis is None else flat.scale
    return Packed(flat.integers.reshape(weight.shape), scale.reshape(weight.shape[0], -1, 1))
