"""Mean intersection over union."""

import numpy as np
import pytest
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.segmentation import miou

LABEL = np.array([[0, 0, 1, 1], [0, 2, 1, 255]])
GIVEN = np.array([[0, 1, 1, 1], [0, 2, 0, 2]])
# class 0: 2 of 4, class 1: 2 of 4, class 2: 1 of 1
EXPECTED = (2 / 4 + 2 / 4 + 1) / 3


def scores(classes, count=4):
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], -1, 0)[None]


@pytest.mark.parametrize("output", [scores(GIVEN), GIVEN[None], GIVEN[None, None]])
def test_by_hand(output):
    assert value(miou(), seen(output, label=LABEL)) == pytest.approx(EXPECTED)


def test_samples_are_added_up_before_dividing():
    whole = value(miou(), seen(scores(GIVEN), label=LABEL))
    halves = [seen(scores(GIVEN[n : n + 1]), label=LABEL[n : n + 1]) for n in (0, 1)]
    assert value(miou(), *halves) == pytest.approx(whole)


def test_one_score_is_a_class_of_its_own():
    logits = np.array([[[[3.0, -2.0], [-1.0, 4.0]]]], np.float32)
    assert value(miou(), seen(logits, label=[[1, 0], [0, 1]])) == 1


def test_other_sizes_and_empty_labels_are_refused():
    with pytest.raises(ConfigError, match=r"\[3, 3\], the output has the pixels \[2, 4\]"):
        value(miou(), seen(scores(GIVEN), label=np.zeros((3, 3), int)))
    with pytest.raises(ConfigError, match="no pixel that counts"):
        value(miou(), seen(scores(GIVEN), label=np.full((2, 4), 255)))
