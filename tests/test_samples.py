"""Which samples calibrate and which ones judge."""

import numpy as np
import pytest

from calibrators.samples import Sample
from onnxq import samples as module
from onnxq.samples import HELD_SAMPLES, HOLD_EVERY, Samples


def source(count, size=4, each=1):
    return [Sample(str(i), {"x": np.full((each, size), i, np.float32)}, each) for i in range(count)]


def names(samples):
    return [sample.name for sample in samples]


def test_every_fifth_sample_is_held_out():
    samples = Samples(source(12), 12)
    assert names(samples) == ["0", "1", "2", "3", "5", "6", "7", "8", "10", "11"]
    assert names(samples.to_judge) == ["4", "9"]
    assert samples.independent
    assert samples.held == 2


@pytest.mark.parametrize("count", [1, HOLD_EVERY - 1])
def test_too_few_to_hold_any_out_judge_themselves(count):
    samples = Samples(source(count), count)
    assert names(samples) == names(samples.to_judge) == [str(i) for i in range(count)]
    assert not samples.independent
    assert samples.held == 0


def test_no_samples():
    samples = Samples((), 0)
    assert names(samples) == names(samples.to_judge) == []


def test_all_samples_are_used_once():
    samples = Samples(source(103), 103)
    used = names(samples) + names(samples.to_judge)
    assert sorted(used, key=int) == [str(i) for i in range(103)]


def test_not_more_are_held_out_than_needed():
    count = (HELD_SAMPLES + 5) * HOLD_EVERY
    samples = Samples(source(count), count)
    assert len(names(samples)) == count - HELD_SAMPLES
    assert samples.held == HELD_SAMPLES


def test_not_more_are_held_out_than_memory_allows(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 4 * 4)
    samples = Samples(source(40), 40)
    assert len(names(samples)) == 38
    assert names(samples.to_judge) == ["4", "9"]


def test_one_huge_sample_is_not_held_but_those_that_fit_are(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 4 * 4)
    all_samples = source(10)
    all_samples[4] = Sample("huge", {"x": np.zeros((1, 100), np.float32)})
    samples = Samples(all_samples, 10)
    assert "huge" in names(samples)
    assert names(samples.to_judge) == ["9"]


def test_batches_count_their_samples():
    samples = Samples(source(5, each=3), 15)
    assert len(names(samples)) == 4
    assert samples.held == 3


def test_the_batches_that_a_model_fixes_stay_together():
    samples = Samples(source(48), 48, block=4)
    assert len(names(samples)) == 40
    assert names(samples.to_judge) == ["16", "17", "18", "19", "36", "37", "38", "39"]
