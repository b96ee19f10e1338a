"""Goals as text."""

import pytest

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.goal import Goal, Limit, parse_any_goal, parse_goal


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("sqnr>=25", Goal("sqnr", 25)),
        (" sqnr >= 25.5 ", Goal("sqnr", 25.5)),
        ("agreement>=0.995", Goal("agreement", 0.995)),
        ("agreement>=1", Goal("agreement", 1)),
    ],
)
def test_goals_are_read(text, goal):
    assert parse_goal(text) == goal
    assert parse_goal(str(goal)) == goal


@pytest.mark.parametrize(
    "text",
    [
        *("", "sqnr", "sqnr>=", "sqnr>=x", "sqnr>=-3", "sqnr>=nan", "sqnr>=inf"),
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


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("kl<=0.05", Limit("kl", 0.05)),
        ("perplexity <= 1.02x", Limit("perplexity", 1.02, relative=True)),
        ("perplexity<=16", Limit("perplexity", 16)),
        ("size<=100MB", Limit("size", 1e8)),
        ("size<= 2 GB", Limit("size", 2e9)),
    ],
)
def test_limits(text: str, limit: Limit) -> None:
    assert parse_any_goal(text) == limit
    assert parse_any_goal(str(limit)) == limit


@pytest.mark.parametrize(
    "text", ["kl<=0", "kl<=x", "size<=5", "size<=5TB", "sqnr<=5", "kl<=1MB", "perplexity<=-1x"]
)
def test_wrong_limits(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kl<=0\.05"):
        parse_any_goal(text)


def test_limits_are_for_mode_weight_only() -> None:
    with pytest.raises(ConfigError, match="expected sqnr"):
        QuantConfig(goal="kl<=0.05")
    assert QuantConfig(mode="weight-only", goal="kl<=0.05").goal == "kl<=0.05"
