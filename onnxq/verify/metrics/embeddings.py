"""``cosine`` and ``spearman``: metrics of embeddings.

``cosine`` is the mean cosine similarity between the embedding of a sample and that of the float model;
it needs no labels. ``spearman`` is the rank correlation of the cosine similarity of two texts with the
label, a score given by people, as in the STS benchmark: Cer et al., "SemEval-2017 Task 1" (2017). A
sample then holds both texts: arrays of the shape ``[samples, 2, ...]``, and one score a sample.

An embedding is the first output of the shape ``[N, D]``; of ``[N, tokens, D]`` the mean over the tokens
that an input called ``attention_mask`` selects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Array, Outputs, Seen, TaskMetric, packaged


def cosine() -> TaskMetric:
    """Return the similarity to the float model's embeddings."""
    return TaskMetric("cosine", _to_float, _mean, needs_labels=False)


def spearman() -> TaskMetric:
    """Return the rank correlation of the similarity of pairs with their labels."""
    return TaskMetric("spearman", _of_pair, _correlation)


def _to_float(seen: Seen) -> float:
    given, exact = _embedding(seen.outputs, seen, "cosine"), _embedding(seen.expected, seen, "cosine")
    return float(np.mean(_similarities(given, exact)))


def _of_pair(seen: Seen) -> tuple[float, float]:
    rows = _embedding(seen.outputs, seen, "spearman")
    if len(rows) != 2:
        raise ConfigError(
            f"the metric spearman needs samples of two texts, {seen.name} has {len(rows)}: give arrays of "
            "the shape [samples, 2, ...] and one score a sample"
        )
    return float(_similarities(rows[:1], rows[1:])[0]), float(np.asarray(seen.label).reshape(-1)[0])


def _embedding(outputs: Outputs, seen: Seen, metric: str) -> Array:
    """Return the embeddings of the texts of a sample, ``[N, D]``."""
    real = [a for a in outputs.values() if isinstance(a, np.ndarray) and a.dtype.kind == "f"]
    for array in sorted(real, key=lambda array: array.ndim != 2):
        if array.ndim == 2:
            return array
        if array.ndim == 3:
            mask = next((m for name, m in seen.feeds.items() if "mask" in name and m.ndim == 2), None)
            weights = np.ones(array.shape[:2]) if mask is None else mask.astype(np.float64)
            pooled: Array = (array * weights[:, :, None]).sum(1) / np.maximum(weights.sum(1), 1)[:, None]
            return pooled
    raise ConfigError(f"the metric {metric} does not suit the model: no output is an embedding, [N, D]")


def _similarities(one: Array, other: Array) -> Array:
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Array = (one * other).sum(1) / np.maximum(lengths, 1e-12)
    return found


def _mean(records: Sequence[float]) -> float:
    return float(np.mean(records))


def _correlation(records: Sequence[tuple[float, float]]) -> float:
    if len(records) < 3:
        raise ConfigError(f"the metric spearman needs three pairs at least, there are {len(records)}")
    stats: Any = packaged("scipy.stats", "spearman")
    return float(stats.spearmanr(*zip(*records, strict=True)).statistic)
