"""Options of some nodes alone: `QuantConfig.override`, and how weight scales are chosen."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import check, quantize
from graphs import parse

from onnxq.core.errors import TargetError

TEXT = """g (float[N,8] x) => (float[N,4] y) <float[8,8] v, float[8,8] w, float[8,4] u>
{ a = MatMul(x, v)  b = Relu(a)  c = MatMul(b, w)  d = Relu(c)  y = MatMul(d, u) }"""


def model():
    return parse(TEXT)


def groups(flow):
    """(consumer, input index) -> the group that it reads."""
    return {(point.consumer, point.input_index): flow.plan.groups[point.group] for point in flow.plan.points}


def test_ranges_of_what_a_node_reads():
    feeds = {"x": np.random.default_rng(0).standard_normal((2000, 8)).astype(np.float32)}
    plain = quantize(model(), feeds=feeds)
    flow = quantize(model(), feeds=feeds, override="MatMul_c: method=entropy")
    check(flow, at_least=15)
    assert groups(flow)["MatMul_c", 0].method == "entropy"
    assert groups(flow)["MatMul_c", 1].method is None
    assert groups(flow)["MatMul_y", 0].method is None
    changed = {
        n for n in plain.plan.params if plain.plan.params[n].scale.sum() != flow.plan.params[n].scale.sum()
    }
    assert changed == {groups(flow)["MatMul_c", 0].name}


def test_the_last_override_counts_and_each_option_by_itself():
    flow = quantize(model(), override=["op:MatMul: method=mse, per_tensor", "MatMul_y: per_tensor=false"])
    assert [groups(flow)[name, 1].spec.axis for name in ("MatMul_a", "MatMul_c", "MatMul_y")] == [
        None,
        None,
        1,
    ]
    assert {groups(flow)[name, 0].method for name in ("MatMul_a", "MatMul_y")} == {"mse"}


def test_one_scale_but_for_some():
    flow = quantize(model(), per_tensor=True, override="MatMul_c: per_tensor=false")
    assert [groups(flow)[name, 1].spec.axis for name in ("MatMul_a", "MatMul_c", "MatMul_y")] == [
        None,
        1,
        None,
    ]


def test_other_weights():
    flow = quantize(model(), "onnxruntime", override="MatMul_c: weight=int4")
    check(flow, at_least=5)
    assert groups(flow)["MatMul_c", 1].spec.dtype == ir.DataType.INT4
    assert groups(flow)["MatMul_a", 1].spec.dtype == ir.DataType.INT8
    assert flow.simple.opset_imports[""] >= 21


def test_weights_that_the_target_does_not_take():
    with pytest.raises(
        TargetError, match="does not take int4 as weight type, which an override requests for 'a'"
    ):
        quantize(model(), "tensorrt8", override="a: weight=int4")


def test_the_scale_that_covers_the_largest_weight():
    flow = quantize(model(), weight_method="absmax")
    weight = flow.simple.graph.initializers["w"].const_value.numpy()
    scale = flow.plan.params[groups(flow)["MatMul_c", 1].name].scale
    np.testing.assert_allclose(scale, np.abs(weight).max(0) / flow.plan.groups["w"].spec.limits[1], rtol=1e-6)
    assert (quantize(model()).plan.params["w"].scale != scale).any()


def test_the_scale_of_some_weights():
    flow = quantize(model(), weight_method="absmax", override="MatMul_c: weight_method=mse")
    assert groups(flow)["MatMul_c", 1].method is None
    assert groups(flow)["MatMul_a", 1].method == "absmax"
