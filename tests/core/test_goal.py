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
