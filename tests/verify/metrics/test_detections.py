"""Mean average precision of what the adapters read."""

import numpy as np
import pytest
from seeing import seen, value

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.box_adapters import ADAPTERS, detr, plain_boxes, yolo
from onnxq.verify.metrics.detections import mean_precision

TRUTH = np.array([[10.0, 10, 30, 40], [50, 20, 90, 60]])
CLASSES = np.array([1, 0])
LABEL = {"boxes": TRUTH, "classes": CLASSES}
PICTURE = np.zeros((1, 3, 100, 200), np.float32)


def centred(boxes):
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)


def yolo_output(boxes, classes, scores, kinds=3, rows=20):
    """As YOLOv8: ``[1, 4 + C, N]``; the other rows have no score."""
    table = np.zeros((rows, 4 + kinds), np.float32)
    table[: len(boxes), :4] = centred(boxes)
    table[np.arange(len(boxes)), 4 + np.asarray(classes, int)] = scores
    return table.T[None]


def test_yolo_removes_overlapping_boxes_of_a_class():
    boxes = np.concatenate([TRUTH, TRUTH + 1])
    found = yolo(seen(yolo_output(boxes, [1, 0, 1, 2], [0.9, 0.8, 0.7, 0.6])))
    assert found.corners == pytest.approx(np.concatenate([TRUTH, TRUTH[1:] + 1]), abs=1e-4)
    assert (found.classes.tolist(), found.kinds) == ([1, 0, 2], 3)


def test_yolo_of_earlier_versions_multiplies_with_the_score_of_an_object():
    table = np.zeros((1, 20, 8), np.float32)
    table[0, :2, :4], table[0, :2, 4], table[0, [0, 1], [6, 5]] = centred(TRUTH), 0.5, 0.8
    found = yolo(seen(table))
    assert found.scores == pytest.approx([0.4, 0.4])
    assert (found.classes.tolist(), found.kinds) == ([1, 0], 3)


def test_detr_scales_to_the_picture_and_drops_no_object():
    logits = np.full((1, 3, 4), -5.0)
    logits[0, [0, 1, 2], [1, 0, 3]] = 5
    boxes = np.concatenate([centred(TRUTH) / [200, 100, 200, 100], np.full((1, 4), 0.5)])[None]
    found = detr(seen(logits, boxes, x=PICTURE))
    assert found.corners[:2] == pytest.approx(TRUTH)
    assert (found.classes[:2].tolist(), found.kinds) == ([1, 0], 3)
    assert found.scores[2] < 0.01


@pytest.mark.parametrize("batch", [False, True])
def test_boxes_that_the_model_selected(batch):
    parts = TRUTH, np.array([0.9, 0.8]), CLASSES
    rows = np.concatenate([TRUTH, parts[1][:, None], CLASSES[:, None]], 1)
    for outputs in (parts, [rows]):
        found = plain_boxes(seen(*(a[None] if batch else a for a in outputs)))
        assert found.corners == pytest.approx(TRUTH)
        assert found.scores == pytest.approx([0.9, 0.8])
        assert found.classes.tolist() == [1, 0]


@pytest.mark.parametrize("name", ADAPTERS)
def test_other_outputs_are_refused(name):
    with pytest.raises(ConfigError, match=f"map:{name} does not suit"):
        ADAPTERS[name](seen(np.zeros((3, 2), np.float32), x=PICTURE))


def test_precision_at_ten_overlaps():
    pytest.importorskip("pycocotools")
    metric = mean_precision("yolo")
    exact = seen(yolo_output(TRUTH, CLASSES, [0.9, 0.8]), label=LABEL)
    assert value(metric, exact) == pytest.approx(1)
    # An overlap of 0.72 counts at 0.5 ... 0.7: five of ten limits, for one class of two.
    moved = TRUTH - np.array([[0, 0, 0, 8.4], [0, 0, 0, 0]])
    assert value(metric, seen(yolo_output(moved, CLASSES, [0.9, 0.8]), label=LABEL)) == pytest.approx(0.75)
    assert value(metric, seen(yolo_output(TRUTH[:0], [], []), label=LABEL)) == 0
    rows = np.array([[1, *TRUTH[0]], [0, *TRUTH[1]], [-1, 0, 0, 0, 0]])
    assert value(metric, seen(yolo_output(TRUTH, CLASSES, [0.9, 0.8]), label=rows)) == pytest.approx(1)


def test_categories_of_coco_are_matched_with_the_models_classes():
    pytest.importorskip("pycocotools")
    metric, output = mean_precision("yolo"), yolo_output(TRUTH, CLASSES, [0.9, 0.8])
    coco = {**LABEL, "classes": [7, 3], "indices": [1, 0], "categories": [3, 7, 8]}
    assert value(metric, seen(output, label=coco)) == pytest.approx(1)
    with pytest.raises(ConfigError, match="3 classes, the labels 4 categories with ids up to 9"):
        value(metric, seen(output, label={**coco, "categories": [3, 7, 8, 9]}))


def test_the_float_models_boxes_are_labels():
    pytest.importorskip("pycocotools")
    metric, output = mean_precision("yolo"), yolo_output(TRUTH, CLASSES, [0.9, 0.1])
    assert metric.label_of is not None
    label = metric.label_of(seen(output))
    assert label["classes"].tolist() == [1]
    assert value(metric, seen(output, label=label)) == pytest.approx(1)


def test_wrong_labels_and_adapters_are_told():
    pytest.importorskip("pycocotools")
    with pytest.raises(ConfigError, match="map:yolo, map:detr, map:boxes"):
        mean_precision("ssd")
    with pytest.raises(ConfigError, match=r"expected labels as .* got list"):
        value(mean_precision("boxes"), seen(TRUTH, np.ones(2), CLASSES, label=[1, 2]))
    with pytest.raises(ConfigError, match="hold no box"):
        value(mean_precision("boxes"), seen(TRUTH, np.ones(2), CLASSES, label=np.zeros((0, 5))))


def test_pictures_without_a_box_are_no_decisions():
    pytest.importorskip("pycocotools")
    metric, output = mean_precision("yolo"), yolo_output(TRUTH, CLASSES, [0.9, 0.8])
    empty = {"boxes": np.zeros((0, 4)), "classes": np.zeros(0, int)}
    assert metric.decisions([metric.look(seen(output, label=label)) for label in (LABEL, empty, empty)]) == 1
