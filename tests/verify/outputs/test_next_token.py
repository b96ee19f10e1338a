"""Distributions of the next token: when an output is one, its KL divergence, and the perplexity of fed ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
from graphs import parse

from onnxq.verify.accuracy import outcome
from onnxq.verify.outputs.next_token import NextToken, NextTokenTally, Vocabulary, find_vocabulary
from onnxq.verify.outputs.output_kinds import OutputKind, output_kinds
from onnxq.verify.outputs.tally import Tally

MODEL = """g (int64[N,S] ids, int64[N,S] kinds, int64[N,S] mask) => (float[N,S,50] logits, float[N,S,8] hidden)
<float[50,8] t, float[2,8] k, float[8,50] w>
{ e = Gather(t, ids)  f = Gather(k, kinds)  hidden = Add(e, f)  logits = MatMul(hidden, w) }"""

WORDS = Vocabulary(50, ("ids",), ("mask",))


def logits(seed: int, shape: tuple[int, ...] = (2, 6, 50)) -> np.ndarray:
    return (3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def log_softmax(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


def found(reference: np.ndarray, actual: np.ndarray, ids: np.ndarray | None) -> NextToken:
    tally = NextTokenTally()
    tally.add(reference, actual, WORDS.following({} if ids is None else {"ids": ids}, reference.shape[:-1]))
    result = tally.result()
    assert result is not None
    return result


def test_the_vocabulary_is_the_largest_table() -> None:
    assert find_vocabulary(parse(MODEL)) == WORDS
    assert find_vocabulary(parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")) is None


def test_logits_have_as_many_classes_as_ids_or_a_few_more() -> None:
    sizes = {49: False, 50: True, 52: True, 64: False, 8: False}
    assert {size: WORDS.gives_logits(np.zeros((2, 3, size), np.float32)) for size in sizes} == sizes
    assert not WORDS.gives_logits(np.zeros((2, 3, 50), np.int64))
    assert not WORDS.gives_logits(np.zeros(50, np.float32))


@pytest.mark.parametrize("part", [2**22, 150])
def test_kl_divergence_and_perplexity(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.verify.outputs.next_token.AT_ONCE", part)
    reference, actual = logits(0), logits(0) + logits(1) / 9
    ids = np.concatenate([np.zeros((2, 1), int), reference.argmax(-1)[:, :-1]], axis=1)
    one, other = log_softmax(reference), log_softmax(actual)
    result = found(reference, actual, ids)
    assert result.kl == pytest.approx((np.exp(one) * (one - other)).sum(-1).mean(), rel=1e-4)
    for value, known in ((other, result.perplexity), (one, result.float_perplexity)):
        picked = np.take_along_axis(value[:, :-1], ids[:, 1:, None], -1)
        assert known == pytest.approx(math.exp(-picked.mean()), rel=1e-4)
    assert "perplexity" in result.describe()


def test_equal_logits_and_shifted_ones_do_not_differ() -> None:
    reference = logits(0)
    assert found(reference, reference + 5, None).kl < 1e-5


def test_no_perplexity_where_ids_are_not_predicted() -> None:
    reference = logits(0)
    assert found(reference, reference, reference.argmin(-1)).perplexity is None
    assert found(reference, reference, None).perplexity is None


def test_ids_are_those_of_the_same_positions() -> None:
    ids = np.arange(12, dtype=np.int32).reshape(2, 6)
    found = WORDS.following({"ids": ids}, (2, 6))
    assert found is not None
    assert found.tolist() == [[1, 2, 3, 4, 5, -1], [7, 8, 9, 10, 11, -1]]
    assert WORDS.following({"ids": ids}, (2, 1)) is None
    assert WORDS.following({"kinds": ids}, (2, 6)) is None


def test_ids_that_fill_up_a_batch_do_not_count() -> None:
    ids, mask = np.array([[5, 6, 7, 0]]), np.array([[1, 1, 1, 0]])
    for given, expected in (
        (mask, [6, 7, -1, -1]),
        (mask.astype(bool), [6, 7, -1, -1]),
        (ids, [6, 7, 0, -1]),
    ):
        found = WORDS.following({"ids": ids, "mask": given}, (1, 4))
        assert found is not None
        assert found.tolist() == [expected]


def test_outputs_of_a_model_are_told_apart() -> None:
    kinds = output_kinds(parse(MODEL))
    arrays = [logits(0), logits(2, (2, 6, 8))]
    quality = outcome(kinds, [(arrays, [arrays[0] + 0.1 * logits(1), arrays[1]])], 2)
    assert quality.outputs["hidden"].next_token is None
    assert quality.next_token is not None
    assert quality.next_token.kl > 0


def test_values_that_are_not_finite_do_not_hide_the_others() -> None:
    reference, actual = logits(0), logits(0)
    actual[0, 0, 3] = np.nan
    assert 0 < found(reference, actual, None).kl < 10


def test_large_outputs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    def quality() -> float:
        tally = Tally(OutputKind(measured=True))
        tally.add(logits(0), logits(1))
        return tally.quality().sqnr

    whole = quality()
    monkeypatch.setattr("onnxq.verify.outputs.tally.PART", 70)
    assert quality() == pytest.approx(whole)
