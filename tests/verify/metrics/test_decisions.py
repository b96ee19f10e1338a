"""top1 and top5."""

import numpy as np
import pytest
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.decisions import top

SCORES = np.array([[0.1, 0.5, 0.2, 0.05, 0.06, 0.09]], np.float32)


@pytest.mark.parametrize(
    ("label", "first", "fifth"), [(1, 1, 1), (2, 0, 1), (3, 0, 0), (np.array([1]), 1, 1)]
)
def test_the_label_is_among_the_largest(label, first, fifth):
    assert value(top(1), seen(SCORES, label=label)) == first
    assert value(top(5), seen(SCORES, label=label)) == fifth


def test_one_hot_labels_and_classes_as_outputs():
    assert value(top(1), seen(SCORES, label=np.eye(6)[1])) == 1
    assert value(top(1), seen(np.array([4]), label=4), seen(np.array([4]), label=3)) == 0.5


@pytest.mark.parametrize("label", [6, -1, "cat", np.zeros(3)])
def test_labels_that_are_no_class_are_refused(label):
    with pytest.raises(ConfigError, match="top1"):
        value(top(1), seen(SCORES, label=label))


@pytest.mark.parametrize(("shift", "text"), [(-1, "too small"), (1, "too large")])
def test_labels_that_count_from_another_number_are_refused(shift, text):
    each = [seen(np.eye(12, dtype=np.float32)[n : n + 1], label=n + shift) for n in range(1, 11)]
    with pytest.raises(ConfigError, match=rf"one {text}: 0% .* shifted by one 100%"):
        value(top(1), *each)


def test_maps_are_refused():
    with pytest.raises(ConfigError, match="miou"):
        value(top(1), seen(np.zeros((1, 3, 4, 4), np.float32), label=0))
    with pytest.raises(ConfigError, match="no output with scores"):
        value(top(1), seen(np.zeros((3, 4), np.int64), label=0))


def test_the_float_models_decision_is_a_label():
    metric = top(5)
    assert metric.label_of is not None
    assert metric.label_of(seen(SCORES)) == 1
