"""``miou``: intersection over union of the classes of pixels, averaged over the classes.

Labels are maps of class indices, ``[H, W]``; negative ones and 255 are not counted. An output holds
scores, ``[1, C, H, W]``, classes, ``[1, H, W]`` or ``[1, 1, H, W]``, or one score for a single class,
``[1, 1, H, W]``. Classes that occur neither in labels nor in outputs do not count. Source: Everingham et
al., "The PASCAL Visual Object Classes Challenge: A Retrospective" (2015), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Array, Seen, TaskMetric

IGNORED = 255


def miou() -> TaskMetric:
    """Return the metric."""
    return TaskMetric("miou", _look, _total, is_share=True, label_of=_classes)


def _look(seen: Seen) -> tuple[int, Array]:
    """Count how often each pair of label and class occurs; the pairs as ``label * count + class``."""
    given, label = _classes(seen), _plane(np.asarray(seen.label))
    if label.shape != given.shape or label.dtype.kind not in "biu":
        raise ConfigError(
            f"the metric miou: the label of {seen.name} is {label.dtype} {list(label.shape)}, the output has "
            f"the pixels {list(given.shape)}: give a map of class indices of that size"
        )
    counted = (label >= 0) & (label != IGNORED)
    label, given = label[counted].astype(np.int64), given[counted].astype(np.int64)
    count = int(max(label.max(initial=0), given.max(initial=0))) + 1
    pairs = np.bincount(label * count + given, minlength=count * count)
    return count, pairs.reshape(count, count)


def _classes(seen: Seen) -> Array:
    """Return the class of each pixel, ``[H, W]``."""
    for array in seen.outputs.values():
        if not isinstance(array, np.ndarray) or array.ndim not in (3, 4):
            continue
        if array.dtype.kind in "iu":
            return _plane(array)
        if array.ndim == 4 and array.dtype.kind == "f":
            return _largest(array[0])
    raise ConfigError(
        "the metric miou does not suit the model: it has no output of the shape [1, C, H, W] or [1, H, W]"
    )


def _plane(array: Array) -> Array:
    """Leave out axes of size 1 before the last two."""
    is_plane = array.ndim >= 2 and array.size == np.prod(array.shape[-2:])
    return array.reshape(array.shape[-2:]) if is_plane else array


def _largest(scores: Array) -> Array:
    if len(scores) > 1:
        found: Array = scores.argmax(0)
        return found
    is_share = scores.min() >= 0 and scores.max() <= 1
    single: Array = (scores[0] > (0.5 if is_share else 0)).astype(np.int64)
    return single


def _total(records: Sequence[tuple[int, Any]]) -> float:
    count = max(size for size, _ in records)
    table = np.zeros((count, count), np.int64)
    for size, pairs in records:
        table[:size, :size] += pairs
    both = np.diag(table)
    either = table.sum(0) + table.sum(1) - both
    if not either.any():
        raise ConfigError("the metric miou: the labels hold no pixel that counts")
    return float((both[either > 0] / either[either > 0]).mean())
