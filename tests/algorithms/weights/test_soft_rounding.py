"""The loop of AdaRound on one layer, on tasks small enough to know what is best."""

import sys
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from onnxq.algorithms.weights.soft_rounding import LayerProblem, check_torch, learn
from onnxq.core.errors import ConfigError

pytest.importorskip("torch")

SHAPES = {"dense": (1, 12, 10), "grouped": (3, 4, 6), "depthwise": (6, 1, 9)}


def task(shape, limits=(-np.inf, np.inf), rows=400, lowest=-8, highest=7, seed=1):
    """Correlated inputs, and weights a few levels wide, rounded to nearest."""
    rng = np.random.default_rng(seed)
    groups, outputs, inputs = shape
    exact = rng.uniform(lowest, highest, shape).astype(np.float32)
    common = rng.normal(size=(groups, rows, 1)) + 1
    x = (common + 0.3 * rng.normal(size=(groups, rows, inputs))).astype(np.float32)
    scale = np.full(shape, 0.1, np.float32)
    bias = rng.normal(size=(groups, 1, outputs)).astype(np.float32)
    full = np.full(shape, 1, np.float32)
    return LayerProblem(
        exact=exact,
        levels=np.rint(exact),
        scale=scale,
        lowest=lowest * full,
        highest=highest * full,
        rows=x,
        wanted=(x @ (exact * scale).transpose(0, 2, 1) + bias).clip(*limits),
        bias=bias,
        limits=limits,
    )


@pytest.mark.parametrize(
    ("shape", "limits"),
    [
        (SHAPES["dense"], (-np.inf, np.inf)),
        (SHAPES["dense"], (0, np.inf)),
        (SHAPES["grouped"], (0, 2)),
        (SHAPES["depthwise"], (-np.inf, np.inf)),
    ],
    ids=["dense", "relu", "grouped, clip", "depthwise"],
)
def test_outputs_come_much_closer(shape, limits):
    given = task(shape, limits)
    learned = learn(given, np.inf, 0, 1)
    assert learned.error() < 0.5 * given.error()
    assert learned.levels.shape == shape
    assert learned.levels.dtype == np.float32
    assert abs(learned.levels - given.exact).max() <= 1
    np.testing.assert_array_equal(learned.bias, given.bias)


def test_it_finds_nearly_the_best_of_all():
    given = task((1, 1, 8))
    below = np.floor(given.exact)
    ups = (np.reshape(up, (1, 1, 8)).astype(np.float32) for up in product((0, 1), repeat=8))
    least = min(replace(given, levels=below + up).error() for up in ups)
    assert learn(given, np.inf, 0, 1).error() - least < 0.1 * (given.error() - least)


def test_the_bias_is_learned_where_there_is_a_place_for_one():
    given = task((1, 4, 6))
    off = replace(given, bias=given.bias + np.array([1.0, -0.5, 0, 2], np.float32), biased=True)
    learned = learn(off, np.inf, 0, 1)
    assert learned.error() < 1.1 * learn(given, np.inf, 0, 1).error()
    np.testing.assert_allclose(learned.bias, given.bias, atol=0.1)


def test_levels_stay_on_the_grid():
    given = task((1, 8, 8), lowest=-2, highest=1)
    given = replace(given, exact=given.exact * 2)  # half of them lie beyond
    learned = learn(replace(given, levels=np.rint(given.exact).clip(-2, 1)), np.inf, 0, 1)
    assert set(np.unique(learned.levels)) == {-2, -1, 0, 1}


def test_levels_far_from_the_weight_are_where_it_begins():
    """What was rounded with regard to other weights may be more than a level away."""
    given = task((1, 4, 6))
    moved = given.exact + np.array([2.0, -2.0, 0, 0, 0, 0], np.float32)
    far = replace(given, exact=moved)
    learned = learn(far, np.inf, 0, 1)
    assert learned.error() <= far.error()
    assert abs(learned.levels - far.levels).max() <= 1


def test_the_same_seed_gives_the_same_levels():
    given = replace(task((2, 6, 12), rows=600), biased=True)
    one, same = (learn(given, np.inf, 3, 1) for _ in range(2))
    np.testing.assert_array_equal(one.levels, same.levels)
    np.testing.assert_array_equal(one.bias, same.bias)


def test_without_time_nothing_changes():
    given = task(SHAPES["dense"])
    assert learn(given, 0, 0, 1) is given


def test_with_little_time_levels_are_whole_all_the_same():
    given = task((1, 64, 64))
    learned = learn(given, 1e-3, 0, 1)
    np.testing.assert_array_equal(learned.levels, np.rint(learned.levels))


def test_what_is_exact_stays():
    given = task(SHAPES["dense"])
    exact = replace(given, wanted=given.rows @ (given.levels * given.scale).transpose(0, 2, 1) + given.bias)
    assert exact.error() == 0
    assert learn(exact, np.inf, 0, 1) is exact


def test_torch_is_left_as_it_was():
    import torch

    before = torch.get_num_threads(), torch.random.get_rng_state()
    learn(task(SHAPES["dense"]), np.inf, 0, before[0] + 1)
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_a_missing_torch_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"onnxq\[torch\]"):
        check_torch()
