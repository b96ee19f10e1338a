"""Small pictures of samples, as data URIs, where an input is a picture."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from calibrators.data.samples import Sample

SIDE = 72
"""The longer side of a thumbnail, in pixels."""

LEAST = 16
"""A smaller input is taken for no picture."""


def thumbnail(batch: Sample, index: int) -> str:
    """Draw one sample of a batch as the model is fed it, with its contrast stretched; empty if no picture.

    Args:
        batch: the batch.
        index: the number of the sample in it.
    """
    for array in batch.feeds.values():
        pixels = _pixels(array, index)
        if pixels is not None:
            return _encoded(pixels)
    return ""


def _pixels(array: NDArray[np.generic], index: int) -> NDArray[np.float64] | None:
    """Return the pixels, ``[H, W, C]``, or None if the array does not hold pictures."""
    if array.ndim != 4 or index >= len(array) or array.dtype.kind not in "fiu":
        return None
    one: NDArray[np.float64] = array[index].astype(np.float64)
    if one.shape[0] in (1, 3):
        one = one.transpose(1, 2, 0)
    if one.shape[2] not in (1, 3) or min(one.shape[:2]) < LEAST or not np.isfinite(one).all():
        return None
    return one


def _encoded(pixels: NDArray[np.float64]) -> str:
    low, high = float(pixels.min()), float(pixels.max())
    levels = np.rint((pixels - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
    picture = Image.fromarray(levels[:, :, 0] if levels.shape[2] == 1 else levels).convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
