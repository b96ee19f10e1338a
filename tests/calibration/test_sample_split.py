"""Which samples calibrate and which ones judge."""

import numpy as np
import pytest

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from onnxq.calibration import sample_split as module
from onnxq.calibration.sample_split import (
    HELD_SAMPLES,
    HOLD_EVERY,
    KEPT_SAMPLES,
    NAMED,
    BadSampleCounter,
    ReservoirSample,
    Samples,
)


def source(count, size=4, each=1):
    values = np.arange(each * size, dtype=np.float32).reshape(each, size)
    return [Sample(str(i), {"x": values + i}, each) for i in range(count)]


def names(samples):
    return [sample.name for sample in samples]


def test_every_fifth_sample_is_held_out():
    samples = Samples(source(12), 12)
    assert names(samples) == ["0", "1", "2", "3", "5", "6", "7", "8", "10", "11"]
    assert names(samples.eval_samples) == ["4", "9"]
    assert samples.has_held_out
    assert samples.held == 2


@pytest.mark.parametrize("count", [1, HOLD_EVERY - 1])
def test_too_few_to_hold_any_out_judge_themselves(count):
    samples = Samples(source(count), count)
    assert names(samples) == names(samples.eval_samples) == [str(i) for i in range(count)]
    assert not samples.has_held_out
    assert samples.held == 0


def test_no_samples():
    samples = Samples((), 0)
    assert names(samples) == names(samples.eval_samples) == []


def test_all_samples_are_used_once():
    samples = Samples(source(103), 103)
    used = names(samples) + names(samples.eval_samples)
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
    assert names(samples.eval_samples) == ["4", "9"]


def test_one_huge_sample_is_not_held_but_those_that_fit_are(monkeypatch):
    monkeypatch.setattr(module, "HELD_BYTES", 2 * 4 * 4)
    all_samples = source(10)
    all_samples[4] = Sample("huge", {"x": np.zeros((1, 100), np.float32)})
    samples = Samples(all_samples, 10)
    assert "huge" in names(samples)
    assert names(samples.eval_samples) == ["9"]


def test_batches_count_their_samples():
    samples = Samples(source(5, each=3), 15)
    assert len(names(samples)) == 4
    assert samples.held == 3


def test_the_limit_counts_samples_not_batches():
    samples = Samples(source(100, each=20), 2000)
    list(samples)
    assert samples.held == 80, "four batches: the fourth goes beyond 64"
    assert samples.given == 2000


def test_none_is_held_out_if_none_is_wanted():
    samples = Samples(source(12), 12, holds=False)
    assert len(names(samples)) == 12
    assert not samples.has_held_out
    assert samples.fit_samples == samples.eval_samples == [], "memory does not grow with the samples"


def test_bad_samples_are_counted_once_and_named(caplog):
    skipped = BadSampleCounter()
    for _ in range(2):
        skipped(CalibrationError("a: torn"))
        skipped(CalibrationError("b: too large"), 3)
    assert skipped.count == 4
    assert caplog.messages == ["skipped: a: torn", "skipped: b: too large"]


def test_of_very_many_bad_samples_only_some_are_named(caplog):
    skipped = BadSampleCounter()
    for i in range(NAMED + 50):
        skipped(CalibrationError(f"{i}: torn"))
    assert skipped.count == NAMED + 50
    assert len(caplog.messages) == NAMED + 1
    assert "without a message" in caplog.messages[-1]


@pytest.mark.parametrize(("bad", "loud"), [(0, False), (5, False), (6, True)])
def test_many_bad_samples_are_a_reason_to_doubt(bad, loud):
    samples = Samples(source(100 - bad), 100, unreadable=BadSampleCounter(bad), refused=BadSampleCounter())
    list(samples)
    assert (samples.skipped, samples.passed) == (bad, 100)
    assert bool(samples.warnings) is loud
    assert all(f"{bad} of 100 SAMPLES WERE BAD" in text for text in samples.warnings)


def test_the_batches_that_a_model_fixes_stay_together():
    samples = Samples(source(48), 48, block=4)
    assert len(names(samples)) == 40
    assert names(samples.eval_samples) == ["16", "17", "18", "19", "36", "37", "38", "39"]


# --- what is kept to be run again -----------------------------------------------------------------


@pytest.mark.parametrize("count", [1, KEPT_SAMPLES, KEPT_SAMPLES + 1, 5 * KEPT_SAMPLES + 3])
def test_samples_to_fit_on_are_spread_evenly_over_all_of_them(count):
    first, second = ReservoirSample(), ReservoirSample()
    for sample in source(count):
        first.take(int(sample.name), sample)
    for sample in reversed(source(count)):
        second.take(int(sample.name), sample)
    numbers = [int(name) for name in names(first.samples)]
    assert min(count, KEPT_SAMPLES // 2) <= len(numbers) <= KEPT_SAMPLES
    assert numbers[0] == 0
    assert len(set(np.diff(numbers))) <= 1
    assert count - numbers[-1] <= max(np.diff(numbers), default=1), "up to the end"
    assert names(second.samples) == names(first.samples)


def test_batches_to_fit_on_count_their_samples_and_their_bytes(monkeypatch):
    kept = ReservoirSample()
    for sample in source(40, each=20):
        kept.take(int(sample.name), sample)
    assert sum(sample.count for sample in kept.samples) <= KEPT_SAMPLES
    monkeypatch.setattr(module, "HELD_BYTES", 4 * 4 * 4)
    small = ReservoirSample()
    for sample in source(40):
        small.take(int(sample.name), sample)
    assert 2 <= len(small.samples) <= 4
    huge = ReservoirSample()
    huge.take(0, Sample("huge", {"x": np.zeros((1, 100), np.float32)}))
    assert names(huge.samples) == ["huge"], "one there always is"


def test_what_is_held_out_is_never_fitted_on():
    samples = Samples(source(60), 60)
    used = names(samples)
    assert names(samples.fit_samples) == used
    assert not set(names(samples.fit_samples)) & set(names(samples.eval_samples))
