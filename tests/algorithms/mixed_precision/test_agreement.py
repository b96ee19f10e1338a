"""The share of equal decisions, estimated from few samples, against the truth of many."""

import numpy as np
import pytest

from onnxq.algorithms.mixed_precision.agreement import Margins, float_gaps, joined


def scores(count, classes, rng):
    return 3 * rng.normal(size=(count, classes))


def margins(exact, given, fit):
    found = Margins(joined(float_gaps([fit])))
    found.look(exact, given)
    return found


@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("level", [0.02, 0.1, 0.3])
def test_it_promises_no_more_than_there_is_and_not_much_less(classes, level):
    rng = np.random.default_rng(classes)
    many = scores(20_000, classes, rng)
    truth = np.mean(many.argmax(1) == (many + level * rng.normal(size=many.shape)).argmax(1))
    found = []
    for _ in range(40):
        exact = scores(20, classes, rng)
        given = exact + level * rng.normal(size=exact.shape)
        found.append(margins(exact, given, scores(80, classes, rng)).agreement())
    assert np.mean(np.array(found) <= truth) > 0.55
    assert np.mean(found) < truth
    assert np.mean(found) == pytest.approx(truth, abs=max(0.75 * (1 - truth), 0.002))


def test_more_noise_promises_less():
    rng = np.random.default_rng(0)
    exact, noise, fit = scores(20, 10, rng), rng.normal(size=(20, 10)), scores(80, 10, rng)
    found = [margins(exact, exact + level * noise, fit).agreement() for level in (0, 0.01, 0.1, 1, 100)]
    assert found == sorted(found, reverse=True)
    assert found[0] == 1
    assert 0 <= found[-1] < 0.7


def test_images_have_their_classes_on_axis_1():
    rng = np.random.default_rng(0)
    exact = scores(50, 7, rng)
    given = exact + 0.2 * rng.normal(size=exact.shape)
    flat = margins(exact, given, exact)
    image = margins(*(a.reshape(2, 5, 5, 7).transpose(0, 3, 1, 2) for a in (exact, given, exact)))
    assert flat.agreement() == pytest.approx(image.agreement())


@pytest.mark.parametrize("output", [np.zeros((3, 4), np.int64), np.zeros((3, 1)), np.zeros(3), ["text"]])
def test_without_scores_there_is_nothing_to_estimate(output):
    found = margins(output, output, output)
    assert found.agreement() is None
    assert not found.resolves(0.5)


def test_scores_that_are_no_numbers_are_left_out():
    exact = np.array([[1.0, 2.0, 3.0], [np.nan, 1.0, 2.0]])
    found = margins(exact, exact + np.array([0.1, 0.0, 0.0]), exact)
    assert len(np.concatenate(found.held)) == 1
    assert 0 < found.agreement() <= 1


def test_many_decisions_are_counted_not_estimated():
    found = margins(np.zeros((2, 3, 20, 20)), np.zeros((2, 3, 20, 20)), np.zeros((1, 3)))
    assert found.resolves(0.98)
    assert not found.resolves(0.995)
