"""Cosine similarity and rank correlation."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.embeddings import cosine, spearman

PAIRS = np.random.default_rng(0).normal(size=(6, 2, 4))
GOLD = [3.0, 1.0, 4.0, 1.0, 5.0, 2.0]


def similarity(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def test_similarity_to_the_float_model():
    one, other = PAIRS[0]
    found = value(cosine(), seen(one[None], expected=other[None]), seen(one[None]))
    assert found == pytest.approx((similarity(one, other) + 1) / 2)


def test_ranks_of_pairs():
    expected = spearmanr([similarity(*pair) for pair in PAIRS], GOLD).statistic
    each = [seen(pair, label=gold) for pair, gold in zip(PAIRS, GOLD, strict=True)]
    assert value(spearman(), *each) == pytest.approx(expected)


def test_tokens_are_averaged_under_the_mask():
    tokens = np.random.default_rng(1).normal(size=(1, 5, 4))
    mask = np.array([[1, 1, 0, 0, 0]])
    pooled = tokens[:, :2].mean(1)
    found = value(
        cosine(), seen(tokens, expected=tokens + np.where(mask, 0, 9)[..., None], attention_mask=mask)
    )
    assert found == pytest.approx(1)
    assert (
        value(cosine(), seen(tokens, expected=np.repeat(pooled[:, None], 5, 1), attention_mask=mask)) > 0.999
    )


def test_samples_that_are_no_pairs_are_refused():
    with pytest.raises(ConfigError, match="samples of two texts"):
        value(spearman(), seen(PAIRS[0][:1], label=1.0))
    with pytest.raises(ConfigError, match="three pairs at least"):
        value(spearman(), seen(PAIRS[0], label=1.0))
