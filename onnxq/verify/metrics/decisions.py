"""``top1`` and ``top5``: the share of samples whose label is among the classes with the largest scores.

Labels are class indices, one-hot vectors, or single numbers in arrays; scores are logits or
probabilities. An output of integers, such as that of ArgMax, is the class itself, for ``top1``. Source:
the ILSVRC evaluation, Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge" (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Array, Seen, TaskMetric, scores_of

SHIFTS = (0, -1, 1)
"""Offsets of labels that are tried, to find out that labels count from another number than classes."""


SHIFTED_SAMPLES = 10
"""The fewest samples that show such an offset."""


def top(count: int) -> TaskMetric:
    """Return the metric for the ``count`` largest scores."""
    name = f"top{count}"

    def look(seen: Seen) -> Array:
        given = _classes(seen, count)
        index = _index(seen.label, given, name)
        return np.array([index + shift in given[:count] for shift in SHIFTS])

    def label_of(seen: Seen) -> Any:
        return _classes(seen, 1)[0]

    return TaskMetric(name, look, _share, is_share=True, label_of=label_of)


def _classes(seen: Seen, count: int) -> list[int]:
    """Return all classes, those with the largest scores first; of equal scores the first class."""
    arrays = [array for array in seen.outputs.values() if isinstance(array, np.ndarray)]
    if count == 1 and arrays and arrays[0].dtype.kind in "iu" and arrays[0].size == 1:
        return [int(arrays[0].reshape(-1)[0])]
    scores = scores_of(seen, f"top{count}")
    if scores.size != max(scores.shape):
        raise ConfigError(
            f"the metric top{count} needs one score for each class of a sample, but an output has the shape "
            f"{list(scores.shape)}: for maps of classes there is miou"
        )
    return [int(one) for one in np.argsort(-scores.reshape(-1), kind="stable")]


def _index(label: Any, classes: Sequence[int], name: str) -> int:
    array = np.asarray(label)
    if array.size == len(classes) > 1 and array.dtype.kind in "biuf" and array.sum() == 1:
        return int(array.argmax())
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ConfigError(f"the metric {name} needs the index of a class as label, got {label!r}")
    index = int(array.reshape(-1)[0])
    if len(classes) > 1 and not 0 <= index < len(classes):
        raise ConfigError(
            f"the metric {name}: label {index} is no class of the model, which has {len(classes)}: labels "
            f"are 0 to {len(classes) - 1}. Do they count from 1?"
        )
    return index


def _share(hits: Sequence[Array]) -> float:
    """Return the share of hits.

    Raises:
        ConfigError: labels and classes count from different numbers, as with 1,000 labels for 1,001 classes.
    """
    right, low, high = np.mean(hits, axis=0)
    for share, wrong in ((low, "one too large"), (high, "one too small")):
        if len(hits) >= SHIFTED_SAMPLES and share > 0.5 and right < share / 2:
            raise ConfigError(
                f"labels are {wrong}: {right:.0%} of the samples are right, with labels shifted by one "
                f"{share:.0%}. Some models have a class of background before the others (1,001 instead of "
                "1,000): shift the labels"
            )
    return float(right)
