"""The pictures of the documentation: what they show, and that they are the same each time."""

import re
from types import MappingProxyType

import draw_methods as drawing
import numpy as np
import onnx_ir as ir
import pytest

from calibrators.methods import CALIBRATORS
from calibrators.statistics import TensorStatistics
from cases import Case
from onnxq.calibration.qparams import ranges
from onnxq.core.plan import Group, QuantPlan, QuantSpec

SUBJECT = drawing.Subject("net", "x", "A tensor")


def seen(*samples):
    statistics = TensorStatistics()
    for values in samples:
        statistics.update(np.array([values], np.float32))
    return statistics


def calibrated(**tensors):
    spec = QuantSpec(ir.DataType.UINT8, symmetric=False)
    groups = {name: Group(name, spec, (name,), (name,)) for name in tensors}
    plan = QuantPlan("onnxruntime", (), (), MappingProxyType(groups), {}, {})
    chosen = {name: ranges(plan, tensors, method) for name, method in CALIBRATORS.items()}
    return drawing.Calibrated(plan, tensors, chosen)


def test_the_range_of_each_method_is_drawn_and_told_the_same_each_time(tmp_path):
    model = calibrated(x=seen(*np.random.default_rng(0).standard_normal((8, 500))))
    files = [tmp_path / "a.svg", tmp_path / "b.svg"]
    with drawing.mpl.rc_context(drawing.STYLE):
        for file in files:
            drawing.save(drawing.draw_methods(SUBJECT, model), file)
    text = files[0].read_text("utf-8")
    assert files[1].read_text("utf-8") == text
    assert len(text) < 100_000
    for name, found in model.ranges.items():
        low, high = found["x"]
        assert f">{name}<" in text
        assert f">{low:.3g} … {high:.3g}<" in text
    assert not re.search("<dc:date>", text)


def test_growth_is_that_of_the_tensor_that_grew_most(tmp_path):
    late, early = seen(*[[0, 1.0]] * 7, [0, 4.0]), seen(*[[0, 4.0]] * 8)
    model = calibrated(early=early, late=late)
    assert drawing.most_grown(model) == "late"
    assert drawing.growth(late.trail).tolist() == [0.25] * 7 + [1.0]
    assert drawing.growth(seen([0.0]).trail).tolist() == [0.0]


def test_columns_hold_everything():
    edges, counts = drawing.columns(seen([-1, 0, 0.5, 2]).histogram, (-1.0, 2.0))
    assert (edges[0], edges[-1]) == (-1, 2)
    assert counts.sum() == 4
    assert counts[-1] == 1


def test_a_tensor_that_is_not_there_is_named():
    with pytest.raises(SystemExit, match=r"net has no tensor 'x' any more; it has \['y'\]"):
        drawing.group_of(SUBJECT, calibrated(y=seen([1.0])))


def test_options_of_a_case_are_those_of_the_command_line(tmp_path):
    case = Case(tmp_path, tmp_path, tuple, options=("--preprocess", "unit"))
    assert drawing.options(case).preprocess == "unit"
    assert drawing.with_zero((1.0, 2.0)) == (0.0, 2.0)
