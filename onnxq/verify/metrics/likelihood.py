"""``kl`` and ``perplexity``: metrics of probabilities.

``kl`` is the Kullback-Leibler divergence of the quantized model's probabilities from the float model's,
in nats, mean over all decisions; it needs no labels. ``perplexity`` is exp of the mean negative log
likelihood of the next token. Its labels are token ids, one for each position, negative ones ignored;
without labels they are the model's own input ids, shifted by one. Source: Jurafsky and Martin, "Speech
and Language Processing", 3rd edition draft, section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Array, Seen, TaskMetric, log_shares, scores_of
from onnxq.verify.outputs.tally import class_axis


def kl() -> TaskMetric:
    """Return the divergence from the float model."""
    return TaskMetric("kl", _divergence, _mean, needs_labels=False)


def perplexity() -> TaskMetric:
    """Return the perplexity."""
    return TaskMetric("perplexity", _surprise, _exp_of_mean, needs_labels=False)


def _divergence(seen: Seen) -> tuple[float, int]:
    name, given = next(
        ((name, array) for name, array in seen.outputs.items() if class_axis(array) is not None), ("", None)
    )
    axis = class_axis(given)
    if given is None or axis is None:
        raise ConfigError("the metric kl does not suit the model: it has no output with scores of classes")
    exact, other = log_shares(seen.expected[name], axis), log_shares(given, axis)
    each = (np.exp(exact) * (exact - other)).sum(axis)
    return float(each.sum()), each.size


def _surprise(seen: Seen) -> tuple[float, int]:
    """Return the sum of negative log likelihoods, and their number."""
    logs = log_shares(scores_of(seen, "perplexity"), -1)
    logs = logs.reshape(-1, logs.shape[-1])
    if seen.label is not None:
        targets = np.asarray(seen.label).reshape(-1)
    else:
        ids, mask = _ids(seen)
        targets = np.append(np.where(mask, ids, -1)[1:], -1)
    if targets.shape != (len(logs),) or targets.dtype.kind not in "iu":
        raise ConfigError(
            f"the metric perplexity: the output has {len(logs)} positions, the label of {seen.name} has "
            f"{targets.size}: give one token id for each, -100 where none counts"
        )
    if targets.max(initial=-1) >= logs.shape[1]:
        raise ConfigError(f"the metric perplexity: {int(targets.max())} is no token of {logs.shape[1]}")
    places = np.flatnonzero(targets >= 0)
    return float(-logs[places, targets[places]].sum()), len(places)


def _ids(seen: Seen) -> tuple[Array, Array]:
    """Return the input ids and which of them count."""
    whole = {
        name: array for name, array in seen.feeds.items() if array.dtype.kind in "iu" and array.ndim == 2
    }
    name = next((name for name in whole if "ids" in name and "type" not in name and "pos" not in name), "")
    if not name:
        raise ConfigError("the metric perplexity: the model has no input of token ids: give labels")
    ids = whole[name].reshape(-1)
    mask = next((array.reshape(-1) > 0 for key, array in whole.items() if "mask" in key), ids >= 0)
    return ids, mask


def _mean(records: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in records) / max(1, sum(count for _, count in records))


def _exp_of_mean(records: Sequence[tuple[float, int]]) -> float:
    if not sum(count for _, count in records):
        raise ConfigError("the metric perplexity: no position counts: samples need two tokens at least")
    return math.exp(min(_mean(records), 700.0))
