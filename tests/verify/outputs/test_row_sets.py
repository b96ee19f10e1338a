"""Sets of rows: neither their order nor their number matters more than it should."""

import numpy as np
import pytest

from onnxq.verify.outputs import row_sets
from onnxq.verify.outputs.output_kinds import OutputKind
from onnxq.verify.outputs.row_origin import Rows
from onnxq.verify.outputs.row_sets import equal_rows, measured_rows
from onnxq.verify.outputs.tally import Tally

RNG = np.random.default_rng(3)
BOXES = RNG.uniform(0, 300, (40, 4))


def judged(reference, actual, axis=1, batched=True, measured=True):
    tally = Tally(OutputKind(measured, Rows(axis, batched)))
    tally.add(np.asarray(reference), np.asarray(actual))
    return tally.quality()


def test_the_order_does_not_matter():
    noise = 0.01 * RNG.standard_normal(BOXES.shape)
    by_position = 10 * np.log10(np.square(BOXES).sum() / np.square(noise).sum())
    order = RNG.permutation(len(BOXES))
    assert judged([BOXES], [(BOXES + noise)[order]]).sqnr == pytest.approx(by_position)
    assert judged([BOXES], [BOXES[order]]).sqnr == np.inf
    columns = judged([BOXES.T], [(BOXES + noise)[order].T], axis=2)
    assert columns.sqnr == pytest.approx(by_position)


def test_each_sample_is_a_set_of_its_own():
    two = np.stack([BOXES, BOXES + 1000])
    assert judged(two, two[:, ::-1]).sqnr == np.inf
    assert judged(two, two[::-1]).sqnr < 10


@pytest.mark.parametrize("block", [1, 100, row_sets.BLOCK])
def test_another_block_size_is_the_same(block, monkeypatch):
    given = RNG.permutation(BOXES + RNG.standard_normal(BOXES.shape))[:-3]
    expected = [
        np.square(one[:, None] - other).sum(-1).min(1) for one, other in ((BOXES, given), (given, BOXES))
    ]
    monkeypatch.setattr(row_sets, "BLOCK", block)
    found = measured_rows(BOXES, given)
    assert found.noise == pytest.approx((expected[0].sum() + expected[1].sum() * 40 / 37) / 2)
    assert found.rows == 40


def test_rows_that_are_lost_or_new_are_errors():
    assert 10 < judged([BOXES], [BOXES[1:]]).sqnr < 40
    assert judged([BOXES], [np.concatenate([BOXES, [[9e3, 9e3, 9e3, 9e3]]])]).sqnr < 0
    assert judged([BOXES], [BOXES[1:]]).agreement == pytest.approx(39 / 40)
    assert judged([BOXES], [BOXES[:0]]).sqnr == pytest.approx(0)
    assert judged([BOXES[:0]], [BOXES]).agreement == 0
    assert judged([BOXES[:0]], [BOXES[:0]]).agreement is None


def test_other_boxes_are_far_off():
    assert judged([BOXES], [RNG.uniform(0, 300, BOXES.shape)]).sqnr < 15


def test_rows_that_are_equal_in_one_model():
    """As in a detector of several classes: the same box twice."""
    twice = np.repeat(BOXES, 2, 0)
    assert judged([twice], [twice[::-1]]).agreement == 1


def test_indices_are_equal_or_not():
    one, other = np.array([[1, 2, 3, 3]]), np.array([[3, 2, 5, 1]])
    found = judged(one, other, measured=False)
    assert found.agreement == 3 / 4
    assert np.isnan(found.sqnr)
    assert equal_rows(np.array([[0, 1], [2, 3]]), np.array([[2, 3], [0, 1], [0, 1]])).equal == 2


def test_a_single_number_decides_nothing():
    scores = np.linspace(0.9, 0.1, 20, dtype=np.float32)
    assert judged([scores], [scores[::-1]]).agreement is None


def test_what_is_not_finite():
    padded = np.concatenate([BOXES, np.full((2, 4), -np.inf)])
    assert judged([padded], [padded[::-1]]).sqnr == np.inf
    assert not judged([BOXES], [padded[:-1]]).finite


def test_the_axis_that_differs_is_that_of_the_rows():
    tally = Tally(OutputKind(measured=True))
    tally.add(BOXES, BOXES[::-1][1:])
    assert tally.quality().sqnr > 10
    assert not tally.quality().incomparable


@pytest.mark.parametrize("other", [np.zeros((3, 3)), np.zeros(4), np.zeros((1, 40, 4))])
def test_other_shapes_are_not_compared(other):
    tally = Tally(OutputKind(measured=True))
    tally.add(BOXES, BOXES + 1)
    alone = tally.quality()
    tally.add(BOXES, other)
    assert tally.quality().incomparable == 1
    assert (tally.quality().sqnr, tally.quality().agreement) == (alone.sqnr, alone.agreement)
    assert len(tally.noise) == 2


def test_the_signal_of_bytes_is_their_variance():
    picture = RNG.integers(100, 140, (1, 3, 8, 8)).astype(np.uint8)
    tally = Tally(OutputKind(measured=True))
    tally.add(picture, picture + 1)
    assert tally.quality().sqnr == pytest.approx(10 * np.log10(picture.astype(float).var()))
    assert tally.quality().agreement is None


def test_integers_that_are_all_equal_have_a_signal_too():
    tally = Tally(OutputKind(measured=True))
    tally.add(np.full(4, 10), np.full(4, 11))
    assert tally.quality().sqnr == pytest.approx(20)
