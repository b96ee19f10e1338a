"""``map``: mean average precision of boxes at overlaps of 0.5 to 0.95, as COCO defines it.

Labels are dictionaries of ``boxes`` (``[n, 4]``: x1, y1, x2, y2 in pixels of the model's input) and
``classes`` or ``labels``, as the COCO file of ``--labels`` gives them; or arrays ``[n, 5]`` of class,
x1, y1, x2, y2, whose rows with a negative class are ignored. pycocotools computes the value: the
reference of Lin et al., "Microsoft COCO: Common Objects in Context" (2014).
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from onnxq.core.errors import ConfigError
from onnxq.verify.metrics.box_adapters import ADAPTERS, Boxes
from onnxq.verify.metrics.task_metric import Array, Seen, TaskMetric, packaged

PSEUDO_SCORE = 0.25
"""The least score of boxes that count as labels, if the float model gives them: what detectors show."""

Truth = tuple[Array, Array, Array]
"""Boxes, classes, and which of them are crowds."""


def mean_precision(adapter: str) -> TaskMetric:
    """Return the metric for outputs in the form of an adapter.

    Raises:
        ConfigError: there is no such adapter, or pycocotools is not installed.
    """
    if adapter not in ADAPTERS:
        raise ConfigError(f"metric map: name the form of the outputs, one of map:{', map:'.join(ADAPTERS)}")
    packaged("pycocotools.cocoeval", "map")
    read = ADAPTERS[adapter]

    def look(seen: Seen) -> tuple[Truth, Boxes]:
        found = read(seen)
        return _truth(seen.label, found.kinds), found

    def label_of(seen: Seen) -> dict[str, Array]:
        found = read(seen)
        sure = found.scores >= PSEUDO_SCORE
        return {"boxes": found.corners[sure], "classes": found.classes[sure]}

    return TaskMetric(
        f"map:{adapter}",
        look,
        _precision,
        is_share=True,
        label_of=label_of,
        decisions=_labelled,
    )


def _labelled(records: Sequence[tuple[Truth, Boxes]]) -> int:
    """Count the pictures with a box: those without one can hardly lower the value."""
    return sum(bool(len(truth[0])) for truth, _ in records)


def _truth(label: Any, kinds: int | None) -> Truth:
    """Return the boxes of a label, with the classes as the model counts them."""
    if isinstance(label, Mapping) and "boxes" in label:
        classes = _classes(label, kinds)
        boxes = np.asarray(label["boxes"], np.float64).reshape(-1, 4)
        crowd = np.asarray(label.get("crowd", np.zeros(len(boxes))), bool)
        return boxes, classes, crowd
    rows = np.asarray(label, np.float64) if not isinstance(label, str | Mapping) else np.zeros((1, 1))
    if rows.ndim != 2 or rows.shape[1] != 5:
        raise ConfigError(
            "the metric map: expected labels as {'boxes': [n, 4], 'classes': [n]} or as arrays [n, 5] of "
            f"class, x1, y1, x2, y2, got {type(label).__name__}"
            f"{list(np.shape(label)) if rows.size > 1 else ''}"
        )
    rows = rows[rows[:, 0] >= 0]
    return rows[:, 1:], rows[:, 0].astype(np.int64), np.zeros(len(rows), bool)


def _classes(label: Mapping[str, Any], kinds: int | None) -> Array:
    """Return the classes of a label; those of a COCO file are ids, or places in its list of categories."""
    known = next((label[name] for name in ("classes", "labels") if name in label), None)
    if known is None:
        raise ConfigError("the metric map: a label has 'boxes' but no 'classes'")
    categories = np.asarray(label.get("categories", ()))
    if kinds is None or not categories.size or kinds > categories.max():
        return np.asarray(known, np.int64).reshape(-1)
    if kinds == len(categories):
        return np.asarray(label["indices"], np.int64).reshape(-1)
    raise ConfigError(
        f"the metric map: the model has {kinds} classes, the labels {len(categories)} categories with ids up "
        f"to {categories.max()}: they do not belong together"
    )


def _precision(records: Sequence[tuple[Truth, Boxes]]) -> float:
    coco: Any = packaged("pycocotools.coco", "map")
    evaluation: Any = packaged("pycocotools.cocoeval", "map")
    truths = [one for image, (truth, _) in enumerate(records) for one in _annotations(image, truth)]
    if not any(not one["iscrowd"] for one in truths):
        raise ConfigError("the metric map: the labels hold no box")
    found = [one for image, (_, boxes) in enumerate(records) for one in _results(image, boxes)]
    if not found:
        return 0.0
    classes = sorted({one["category_id"] for one in truths})
    data = coco.COCO()
    for number, one in enumerate(truths, 1):
        one["id"] = number
    data.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(records))],
        "categories": [{"id": one} for one in classes],
        "annotations": truths,
    }
    with redirect_stdout(io.StringIO()):
        data.createIndex()
        judge = evaluation.COCOeval(data, data.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return float(judge.stats[0])


def _annotations(image: int, truth: Truth) -> list[dict[str, Any]]:
    return [
        {
            **_box(image, corners, kind),
            "iscrowd": int(crowd),
            "area": float(np.prod(corners[2:] - corners[:2])),
        }
        for corners, kind, crowd in zip(*truth, strict=True)
    ]


def _results(image: int, boxes: Boxes) -> list[dict[str, Any]]:
    each = zip(boxes.corners, boxes.classes, boxes.scores, strict=True)
    return [{**_box(image, corners, kind), "score": float(score)} for corners, kind, score in each]


def _box(image: int, corners: Array, kind: Any) -> dict[str, Any]:
    x, y, right, lower = map(float, corners)
    return {"image_id": image, "category_id": int(kind), "bbox": [x, y, right - x, lower - y]}
