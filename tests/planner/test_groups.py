"""Which tensors a target's transparent operators bring to share parameters, and whose values decide."""

import numpy as np
import pytest
from flow import check, quantize
from graphs import parse

from calibrators.methods import CALIBRATORS
from calibrators.statistics import TensorStatistics
from onnxq.calibration.qparams import compute_qparams, from_statistics, ranges
from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

WEIGHTS = "float[4,4,3,3] w, float[4,4,3,3] v, float[4,8,3,3] u"
CONV = "Conv <pads = [1,1,1,1]>"

CONCAT = f"""a0 = {CONV} (x, w) a = Relu (a0) b0 = {CONV} (x, v) b = Tanh (b0)
    k = Concat <axis = 1> (a, b) c = {CONV} (k, u) d = {CONV} (a, v) e = {CONV} (b, w) s = Add (c, d) y = Add (s, e)"""
POOL = f"""a0 = {CONV} (x, w) a = Relu (a0) p = MaxPool <kernel_shape = [3,3], pads = [1,1,1,1]> (a)
    c = {CONV} (a, v) d = {CONV} (p, w) y = Add (c, d)"""
SLICED = f"""a = Tanh (x) b = Sigmoid (x) k = Concat <axis = 1> (a, b) h = Slice (k, from, to, axis)
    c = {CONV} (a, w) d = {CONV} (h, v) y = Add (c, d)"""
SPLIT = f"""t0 = {CONV} (x, w) t = Tanh (t0) a, b = Split <axis = 1> (t, halves) p, q = Split <axis = 1> (x, halves)
    m = MatMul (a, b) n = MatMul (m, p) y = Concat <axis = 1> (n, q)"""


def model_of(nodes):
    text = f"""g (float[N,4,8,8] x) => (float[N,4,8,8] y)
        <{WEIGHTS}, int64[2] halves, int64[1] from, int64[1] to, int64[1] axis, float[4] double> {{ {nodes} }}"""
    given = {"halves": [2, 2], "from": [2], "to": [6], "axis": [1]}
    double = np.array([1, 1, 2, 2], np.float32)
    return parse(text, **{name: np.array(values) for name, values in given.items()}, double=double)


def groups_of(nodes, target="tensorrt"):
    plan = make_plan(simplify(model_of(nodes)), get_target(target), QuantConfig())
    return {tensor: group for group in plan.groups.values() for tensor in group.tensors}


def test_concat_shares_the_range_of_its_output():
    groups = groups_of(CONCAT)
    assert groups["a"] == groups["b"] == groups["k"]
    assert set(groups["k"].tensors) == {"a", "b", "k"}
    assert groups["k"].observed_tensors == ("k",)
    assert groups["x"] != groups["k"]


def test_a_pool_shares_the_range_of_its_input():
    groups = groups_of(POOL)
    assert groups["a"] == groups["p"]
    assert groups["a"].observed_tensors == ("a",)
    assert groups["a"].bounds == (0, np.inf)


def test_where_neither_holds_all_values_both_are_observed():
    groups = groups_of(SLICED)
    assert groups["a"] == groups["h"]
    assert set(groups["a"].observed_tensors) == {"a", "h"}


def test_siblings_stay_apart():
    """Parts of a tensor that nobody reads in integers as a whole: each has its own scale."""
    groups = groups_of(SPLIT)
    assert groups["a"] != groups["b"]


def test_onnxruntime_needs_no_equal_scales():
    groups = groups_of(CONCAT, "onnxruntime")
    assert groups["a"] != groups["k"]


def statistics_of(values):
    tensor = TensorStatistics()
    tensor.update(np.asarray(values, np.float32))
    return tensor


@pytest.mark.parametrize("method", CALIBRATORS)
def test_the_range_is_solved_from_all_the_values(method):
    """Not from those of the tensor that came first."""
    model = simplify(model_of(SLICED))
    plan = make_plan(model, get_target("tensorrt"), QuantConfig(float_type="float32"))
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=5000), 8 * rng.normal(size=5000)
    name = next(group.name for group in plan.groups.values() if "a" in group.tensors)
    scales = []
    for a, h in ((small, large), (large, small)):
        known = {
            **dict.fromkeys(plan.observed, statistics_of(small)),
            "a": statistics_of(a),
            "h": statistics_of(h),
        }
        solved = compute_qparams(model, plan, from_statistics(known, CALIBRATORS[method]))
        scales.append(float(solved.params[name].scale))
        low, high = ranges(plan, known, CALIBRATORS[method])[name]
        assert max(-low, high) / 127 == pytest.approx(scales[-1])
    assert scales[0] == pytest.approx(scales[1])
    assert scales[0] > np.abs(small).max() / 127


@pytest.mark.parametrize("nodes", [CONCAT, POOL, SLICED, SPLIT])
@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_they_load_and_run(nodes, target):
    check(quantize(model_of(nodes), target), 15)


SILU = "g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w, float[4,4,1,1] v> {{ {body} y = Conv(m, v) }}"


@pytest.mark.parametrize(
    ("body", "flat"),
    [
        ("c = Conv(x, w) s = Sigmoid(c) m = Mul(c, s)", "silu"),
        ("c = Conv(x, w) s = Sigmoid(c) m = Mul(s, c)", "silu"),
        ("c = Conv(x, w) s = Sigmoid(c) p = Mul(c, s) m = Add(p, c)", None),
        ("c = Conv(x, w) s = Sigmoid(c) m = Mul(s, s)", None),
        ("c = Conv(x, w) s = Sigmoid(c) p = Mul(c, s) m = Add(p, s)", None),
    ],
)
def test_what_only_a_silu_reads_need_not_reach_where_it_is_flat(body, flat):
    model = simplify(parse(SILU.format(body=body)))
    plan = make_plan(model, get_target("onnxruntime"), QuantConfig())
    group = next(group for group in plan.groups.values() if "c" in group.tensors)
    assert group.flat == flat


def test_what_a_relu_limits_joins_no_negative_values():
    """Else its zero point would lie in the middle of the grid, and ONNX Runtime would fuse no Relu with it."""
    groups = groups_of(
        f"""a0 = {CONV} (x, w) a = Relu (a0) p = Resize <mode = "nearest"> (a, , double)
        b0 = {CONV} (x, v) b = Resize <mode = "nearest"> (b0, , double) k = Concat <axis = 1> (p, b)
        c = {CONV} (k, u) y = MaxPool <kernel_shape = [2,2], strides = [2,2]> (c)""",
        "onnxruntime",
    )
    assert groups["a"] == groups["p"] != groups["k"] == groups["b"]
    assert groups["a"].bounds == (0, np.inf)


def test_the_input_and_the_output_of_a_cache_have_one_grid():
    model = parse(
        """g (float[N,4,5,8] x, float[N,4,P,8] past, float[N,4,P,8] other) => (float[N,4,5,8] y, float[N,4,T,8] now)
        <float[8,8] w, float[8,8] v> { k = MatMul (x, w) now = Concat <axis = 2> (past, k)
            t = Transpose <perm = [0, 1, 3, 2]> (now) o = Concat <axis = 2> (other, k)
            s = MatMul (x, t) p = Softmax (s) a = MatMul (p, o) y = MatMul (a, v) }""",
        opset=17,
    )
    plan = make_plan(simplify(model), get_target("qnn"), QuantConfig(target="qnn"))
    groups = {tensor: group for group in plan.groups.values() for tensor in group.tensors}
    assert groups["past"] is groups["now"] is groups["k"]
    assert groups["now"].observed_tensors == ("now",)
    assert groups["other"] is not groups["past"]
