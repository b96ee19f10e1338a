"""Goals as text."""

import pytest

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.goal import Goal, parse_goal


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("sqnr>=25", Goal("sqnr", 25)),
        (" sqnr >= 25.5 ", Goal("sqnr", 25.5)),
        ("agreement>=0.995", Goal("agreement", 0.995)),
        ("agreement>=1", Goal("agreement", 1)),
        ("metric>=-0.5", Goal("metric", -0.5)),
        ("metric<=3", Goal("metric", at_most=3)),
        ("top1>=0.99x", Goal("top1", 0.99, relative=True)),
        ("wer <= 1.1x", Goal("wer", at_most=1.1, relative=True)),
        ("map:yolo>=0.3", Goal("map:yolo", 0.3)),
    ],
)
def test_goals_are_read(text, goal):
    assert parse_goal(text) == goal
    assert parse_goal(str(goal)) == goal


@pytest.mark.parametrize(
    "text",
    [
        *("", "sqnr", "sqnr>=", "sqnr>=x", "sqnr>=-3", "sqnr>=nan", "sqnr>=inf"),
        *("sqnr>=0.9x", "top1>=-1", "metric>=0x", "metric:a>=1", "metric>=x", "wer<=-0.1"),
        *("accuracy>=0.9", "agreement>=1.5", "agreement>=99", "agreement<=0.9", "agreement>0.9"),
    ],
)
def test_other_texts_are_refused_and_the_forms_told(text):
    with pytest.raises(ConfigError, match=r"goal: expected sqnr>=25 .* agreement>=0\.99"):
        parse_goal(text)
    with pytest.raises(ConfigError, match="goal: expected"):
        QuantConfig(goal=text)


def test_an_own_measure_has_a_name():
    def accuracy(path):
        return 0.5

    assert str(Goal(accuracy, 0.75)) == "accuracy>=0.75"


@pytest.mark.parametrize(("text", "right"), [("wer>=0.1", "<="), ("top1<=0.9", ">="), ("kl>=1x", "<=")])
def test_a_limit_on_the_wrong_side_is_refused(text, right):
    with pytest.raises(ConfigError, match=f"goal: .* use {right}"):
        parse_goal(text)


def test_limits_relative_to_the_float_model():
    assert Goal("top1", 0.9, relative=True).absolute(0.5) == Goal("top1", 0.45)
    assert Goal("wer", at_most=1.1, relative=True).absolute(0.2).limit == pytest.approx(0.22)
    assert Goal("top1", 0.9).absolute(0.5) == Goal("top1", 0.9)


def test_what_holds_and_what_is_better():
    larger, smaller = Goal("top1", 0.5), Goal("wer", at_most=0.5)
    assert (larger.holds(0.6), larger.holds(0.5), larger.holds(0.4)) == (True, True, False)
    assert (smaller.holds(0.4), smaller.holds(0.5), smaller.holds(0.6)) == (True, True, False)
    assert smaller.score(0.1) > smaller.score(0.2)


def test_a_goal_has_one_limit():
    for wrong in ({}, {"at_least": 1, "at_most": 2}):
        with pytest.raises(ConfigError, match="expected one limit"):
            Goal("top1", **wrong)


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("kl<=0.05", Goal("kl", at_most=0.05)),
        ("perplexity <= 1.02x", Goal("perplexity", at_most=1.02, relative=True)),
        ("perplexity<=16", Goal("perplexity", at_most=16)),
        ("size<=100MB", Goal("size", at_most=1e8)),
        ("size<= 2 GB", Goal("size", at_most=2e9)),
    ],
)
def test_limits(text: str, goal: Goal) -> None:
    assert parse_goal(text) == goal
    assert parse_goal(str(goal)) == goal


@pytest.mark.parametrize(
    "text", ["kl<=0", "kl<=x", "size<=5", "size<=5TB", "sqnr<=5", "kl<=1MB", "perplexity<=-1x", "size>=5MB"]
)
def test_wrong_limits(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kl<=0\.05"):
        parse_goal(text)


def test_goals_of_a_mode() -> None:
    with pytest.raises(ConfigError, match="mode static takes no size; expected sqnr"):
        QuantConfig(goal="size<=1MB")
    with pytest.raises(ConfigError, match="mode weight-only takes no top1"):
        QuantConfig(mode="weight-only", goal="top1>=0.9")
    assert QuantConfig(mode="weight-only", goal="kl<=0.05").goal == QuantConfig(goal="kl<=0.05").goal
