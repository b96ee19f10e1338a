"""What metrics see of samples: a tool that their tests share."""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxq.verify.metrics.task_metric import Seen, TaskMetric


def seen(*outputs: Any, label: Any = None, expected: Any = None, **feeds: Any) -> Seen:
    """One sample; outputs are called ``y0``, ``y1`` …"""
    given = {f"y{n}": np.asarray(array) for n, array in enumerate(outputs)}
    exact = given if expected is None else {"y0": np.asarray(expected)}
    return Seen("a sample", {name: np.asarray(a) for name, a in feeds.items()}, given, exact, label)


def value(metric: TaskMetric, *samples: Seen) -> float:
    return metric.total([metric.look(one) for one in samples])
