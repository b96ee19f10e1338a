"""Who is faster, told by times that vary."""

import numpy as np
import pytest

from onnxq.verify.latency import fastest, gain, lowest_gain, significantly_faster, winner


def times(*means, turns=200, noise=0.3, seed=0):
    """Each turn is slowed down as a whole, and each run a little by itself."""
    rng = np.random.default_rng(seed)
    common = 1 + rng.exponential(noise, (turns, 1))
    return [np.array(means) * common * (1 + rng.exponential(0.02, (turns, len(means))))]


def test_small_differences_are_told_though_the_machine_is_busy():
    found = times(1.0, 0.97)
    assert significantly_faster(found, 1, 0)
    assert not significantly_faster(found, 0, 1)
    assert gain(found, 1, 0) == pytest.approx(1 / 0.97, rel=0.01)
    assert 1 < lowest_gain(found, 1, 0) <= gain(found, 1, 0)


def test_equal_models_are_hardly_ever_told_apart():
    told = [
        significantly_faster(times(1.0, 1.0, turns=turns, seed=seed), 1, 0)
        for seed in range(300)
        for turns in (9, 60)
    ]
    assert np.mean(told) < 0.05


def test_few_turns_must_all_agree():
    found = np.array([[2.0, 1.0]] * 4 + [[1.0, 1.1]])
    assert not significantly_faster([found], 1, 0)
    assert significantly_faster([found[:4]], 1, 0)


def test_the_first_wins_unless_another_is_clearly_faster():
    found = times(1.0, 0.5, 0.499, 0.4)
    assert winner(found, [1, 2]) == 1
    assert winner(found, [1, 2, 3]) == 3
    assert winner(found, [3, 1, 2]) == 3


def test_a_gain_must_show_in_every_heat():
    won, lost = times(1.0, 0.9), times(1.0, 1.02, seed=1)
    assert significantly_faster(won, 1, 0)
    assert not significantly_faster([*won, *won, *lost], 1, 0)
    assert gain([*won, *won, *lost], 1, 0) > 1


def test_the_fastest():
    assert fastest(times(1.0, 0.99, 0.5), [0, 1]) == 1
