"""Divergence and perplexity, against their formulas."""

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.likelihood import kl, perplexity
from onnxq.verify.outputs.next_token import Vocabulary

RNG = np.random.default_rng(0)
FLOAT, INT8 = RNG.normal(size=(2, 1, 5, 7))
WORDS = Vocabulary(7, ("input_ids",), ("attention_mask",))
IDS = RNG.integers(0, 7, (1, 5))


@pytest.mark.parametrize("form", [lambda x: x, lambda x: softmax(x, -1)])
def test_divergence_of_logits_and_of_probabilities(form):
    expected = rel_entr(softmax(FLOAT, -1), softmax(INT8, -1)).sum(-1).mean()
    assert value(kl(), seen(form(INT8), expected=form(FLOAT))) == pytest.approx(expected, rel=1e-6)
    assert value(kl(), seen(form(FLOAT), expected=form(FLOAT))) == 0


def test_perplexity_of_the_next_token_and_of_given_ones():
    logs = log_softmax(FLOAT[0], -1)
    shifted = np.exp(-np.mean([logs[n, IDS[0, n + 1]] for n in range(4)]))
    assert value(perplexity(WORDS), seen(FLOAT, input_ids=IDS)) == pytest.approx(shifted)
    masked = np.exp(-np.mean([logs[n, IDS[0, n + 1]] for n in range(2)]))
    mask = np.array([[1, 1, 1, 0, 0]])
    assert value(perplexity(WORDS), seen(FLOAT, input_ids=IDS, attention_mask=mask)) == pytest.approx(masked)
    given = np.exp(-np.mean([logs[n, IDS[0, n]] for n in (0, 3)]))
    label = np.where(np.isin(np.arange(5), (0, 3)), IDS[0], -100)
    assert value(perplexity(WORDS), seen(FLOAT, label=label)) == pytest.approx(given)


def test_what_does_not_suit_is_told():
    with pytest.raises(ConfigError, match="5 positions"):
        value(perplexity(WORDS), seen(FLOAT, label=[1, 2]))
    with pytest.raises(ConfigError, match="no input of token ids"):
        value(perplexity(WORDS), seen(FLOAT, x=FLOAT))
    with pytest.raises(ConfigError, match="no input of token ids"):
        value(perplexity(None), seen(FLOAT, input_ids=IDS))
    with pytest.raises(ConfigError, match="is no token of 7"):
        value(perplexity(WORDS), seen(FLOAT, label=[1, 2, 3, 4, 9]))
    with pytest.raises(ConfigError, match="no output with scores"):
        value(kl(), seen(IDS))
