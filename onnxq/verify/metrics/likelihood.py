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
from functools import partial

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.task_metric import Seen, TaskMetric, scores_of
from onnxq.verify.outputs.next_token import Vocabulary, divergences, log_shares
from onnxq.verify.outputs.tally import class_axis


def kl() -> TaskMetric:
    """Return the divergence from the float model."""
    return TaskMetric("kl", _divergence, _mean, needs_labels=False)


def perplexity(words: Vocabulary | None) -> TaskMetric:
    """Return the perplexity.

    Args:
        words: the ids that the model takes; without, every sample needs a label.
    """
    return TaskMetric("perplexity", partial(_surprise, words), _exp_of_mean, needs_labels=False)


def _divergence(seen: Seen) -> tuple[float, int]:
    name, given = next(
        ((name, array) for name, array in seen.outputs.items() if class_axis(array) is not None), ("", None)
    )
    axis = class_axis(given)
    if given is None or axis is None:
        raise ConfigError("the metric kl does not suit the model: it has no output with scores of classes")
    exact, other = log_shares(seen.expected[name], axis), log_shares(given, axis)
    each = divergences(exact, other, axis)
    return float(each.sum()), each.size


def _surprise(words: Vocabulary | None, seen: Seen) -> tuple[float, int]:
    """Return the sum of negative log likelihoods, and their number."""
    logs = log_shares(scores_of(seen, "perplexity"), -1)
    targets = seen.label
    if targets is None:
        targets = words and words.following(seen.feeds, logs.shape[:-1])
        if targets is None:
            raise ConfigError(
                "the metric perplexity: the model has no input of token ids at the positions of its output: "
                "give labels"
            )
    targets, logs = np.asarray(targets).reshape(-1), logs.reshape(-1, logs.shape[-1])
    if targets.shape != (len(logs),) or targets.dtype.kind not in "iu":
        raise ConfigError(
            f"the metric perplexity: the output has {len(logs)} positions, the label of {seen.name} has "
            f"{targets.size}: give one token id for each, -100 where none counts"
        )
    if targets.max(initial=-1) >= logs.shape[1]:
        raise ConfigError(f"the metric perplexity: {int(targets.max())} is no token of {logs.shape[1]}")
    places = np.flatnonzero(targets >= 0)
    return float(-logs[places, targets[places]].sum()), len(places)


def _mean(records: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in records) / max(1, sum(count for _, count in records))


def _exp_of_mean(records: Sequence[tuple[float, int]]) -> float:
    if not sum(count for _, count in records):
        raise ConfigError("the metric perplexity: no position counts: samples need two tokens at least")
    return math.exp(min(_mean(records), 700.0))
