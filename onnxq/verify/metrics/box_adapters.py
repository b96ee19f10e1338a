"""Read boxes from the outputs of detectors, each form by an adapter that ``map:NAME`` names.

=========  ==================================================================================================
``yolo``   ``[1, 4 + C, N]``: centre, size, scores of classes, as Ultralytics exports YOLOv8 and later; or
           ``[1, N, 5 + C]`` with the score of an object before them, as YOLOv5 to v7. Sizes in pixels of the
           input. Overlapping boxes are removed, with the limits that Ultralytics validates with
``detr``   logits ``[1, N, C + 1]``, of which the last is no object, and ``[1, N, 4]``: centre and size as
           shares of the input (Carion et al., 2020)
``boxes``  boxes ``[N, 4]`` (x1, y1, x2, y2 in pixels of the input), scores and classes ``[N]``; or one array
           ``[N, 6]`` of these; with a batch axis of size 1 or without
=========  ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Array, Seen
from onnxq.verify.outputs.next_token import log_shares

LEAST_SCORE, MOST_OVERLAP, MOST_BOXES = 0.001, 0.7, 300
"""What Ultralytics validates with: the least score, the largest overlap of a class, the most boxes."""

MOST_CANDIDATES = 30_000
"""The most boxes of which overlapping ones are removed, also as in Ultralytics."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of one sample.

    Attributes:
        corners: ``[n, 4]``: x1, y1, x2, y2 in pixels of the input.
        scores: ``[n]``.
        classes: ``[n]``, integers.
        kinds: the number of classes of the model; None: unknown.
    """

    corners: Array
    scores: Array
    classes: Array
    kinds: int | None = None


def yolo(seen: Seen) -> Boxes:
    """Read the output of a YOLO model."""
    rows = next((a[0] for a in _floats(seen).values() if a.ndim == 3 and min(a.shape[1:]) > 4), None)
    if rows is None:
        raise _unsuited("yolo", seen, "[1, 4 + C, N] or [1, N, 5 + C]")
    if len(rows) < rows.shape[1]:
        rows = rows.T
        shares = rows[:, 4:]
    else:
        shares = rows[:, 5:] * rows[:, 4:5]
    places, classes = np.nonzero(shares >= LEAST_SCORE)
    scores = shares[places, classes]
    order = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    corners = _corners(rows[places[order], :4])
    kept = _apart(corners, classes[order])
    return Boxes(corners[kept], scores[order][kept], classes[order][kept], shares.shape[1])


def detr(seen: Seen) -> Boxes:
    """Read the outputs of a DETR model."""
    arrays = {name: a[0] for name, a in _floats(seen).items() if a.ndim == 3}
    fours = [name for name, a in arrays.items() if a.shape[1] == 4]
    chosen = next((name for name in fours if "box" in name), fours[-1] if fours else "")
    logits = next((a for name, a in arrays.items() if name != chosen), None)
    if not chosen or logits is None or len(arrays[chosen]) != len(logits):
        raise _unsuited("detr", seen, "[1, N, C + 1] and [1, N, 4]")
    boxes = arrays[chosen]
    shares = np.exp(log_shares(logits, -1))[:, :-1]
    height, width = _pixels(seen)
    corners = _corners(boxes) * np.array([width, height, width, height])
    return Boxes(corners, shares.max(1), shares.argmax(1), shares.shape[1])


def plain_boxes(seen: Seen) -> Boxes:
    """Read boxes that the model has selected itself."""
    arrays = {n: _without_batch(n, a) for n, a in seen.outputs.items() if isinstance(a, np.ndarray)}
    corners = next((a for a in arrays.values() if a.ndim == 2 and a.shape[1] == 4), None)
    if corners is None:
        rows = next((a for a in arrays.values() if a.ndim == 2 and a.shape[1] == 6), None)
        if rows is None:
            raise _unsuited("boxes", seen, "[N, 4], [N] and [N], or [N, 6]")
        return Boxes(rows[:, :4], rows[:, 4], np.rint(rows[:, 5]).astype(np.int64))
    each = {name: a for name, a in arrays.items() if a.shape == (len(corners),)}
    whole = [a for name, a in each.items() if a.dtype.kind in "iu" or "class" in name or "label" in name]
    scores = [a for name, a in each.items() if a.dtype.kind == "f" and not any(a is one for one in whole)]
    if not whole or not scores:
        raise _unsuited("boxes", seen, "[N, 4], scores [N] and classes [N]")
    return Boxes(corners, scores[0], np.rint(whole[0]).astype(np.int64))


ADAPTERS: Mapping[str, Callable[[Seen], Boxes]] = {"yolo": yolo, "detr": detr, "boxes": plain_boxes}
"""The adapters by name."""


def _floats(seen: Seen) -> dict[str, Array]:
    """Return the outputs of floating-point numbers, in double precision."""
    arrays = {name: a for name, a in seen.outputs.items() if isinstance(a, np.ndarray)}
    return {name: a.astype(np.float64) for name, a in arrays.items() if a.dtype.kind == "f"}


def _without_batch(name: str, array: Array) -> Array:
    is_flat = array.ndim == 2 and array.shape[0] == 1 and "box" not in name and array.shape[1] not in (4, 6)
    return array[0] if array.ndim == 3 or is_flat else array


def _unsuited(adapter: str, seen: Seen, expected: str) -> ConfigError:
    shapes = ", ".join(f"{name} {list(np.shape(array))}" for name, array in seen.outputs.items())
    return ConfigError(
        f"the metric map:{adapter} does not suit the model: expected {expected}, the outputs are {shapes}. "
        f"Other forms: map:{', map:'.join(ADAPTERS)}, or a function of your own (--metric FILE.py:FUNCTION)"
    )


def _corners(boxes: Array) -> Array:
    """Turn centre and size into corners."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)


def _apart(corners: Array, classes: Array) -> list[int]:
    """Return the places of boxes, sorted by score, that overlap no better one of their class too much."""
    areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
    kept: list[int] = []
    left = np.arange(len(corners))
    while len(left) and len(kept) < MOST_BOXES:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        low, high = (f(corners[best, part], corners[left][:, part]) for f, part in _SIDES)
        common = np.prod(np.maximum(high - low, 0), axis=1)
        overlap = common / np.maximum(areas[best] + areas[left] - common, 1e-9)
        left = left[(overlap <= MOST_OVERLAP) | (classes[left] != classes[best])]
    return kept


_SIDES = ((np.maximum, slice(0, 2)), (np.minimum, slice(2, 4)))


def _pixels(seen: Seen) -> tuple[int, int]:
    """Return height and width of the picture that the model gets."""
    shape = next((a.shape for a in seen.feeds.values() if a.ndim == 4), None)
    if shape is None:
        raise ConfigError("the metric map:detr needs an input with a picture, [1, C, H, W] or [1, H, W, C]")
    return (shape[1], shape[2]) if shape[3] in (1, 3) and shape[1] not in (1, 3) else (shape[2], shape[3])
