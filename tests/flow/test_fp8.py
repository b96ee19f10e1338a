"""Target tensorrt-fp8: what is quantized, what the file holds, and that all runtimes compute the same."""

import importlib.util
from dataclasses import replace

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from flow import quantize, run
from graphs import parse

import onnxq
from calibrators.onnx_files import to_proto
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.sensitivity.single_group import quantize_alone
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.graph.nodes import all_nodes
from onnxq.graph.qdq.read_qdq import DEQUANTIZE, QUANTIZE
from onnxq.planner.number_formats import find_formats
from onnxq.targets.lookup import get_target

FP8 = ir.DataType.FLOAT8E4M3FN

NETWORK = """g (float[1,24,8,8] x) => (float[1,20] y)
<float[32,24,3,3] w1, float[32] b1, float six, float[32,1,3,3] w2, float[24,32,1,1] w3, float[24,20] w4> {
    c = Conv <pads = [1, 1, 1, 1]> (x, w1, b1) r = Relu (c)
    d = Conv <group = 32, pads = [1, 1, 1, 1]> (r, w2) k = Clip (d, , six)
    e = Conv (k, w3) t = Add (e, x) f = Conv <pads = [1, 1, 1, 1]> (t, w1) g = Relu (f)
    h = Conv (g, w3) p = GlobalAveragePool (h) q = Flatten (p) y = MatMul (q, w4)
}"""

ATTENTION = """g (float[1,4,32,16] a, float[1,32,64] b) => (float[1,4,32,16] y) <float[64,64] w, int64[4] heads> {
    v = MatMul (b, w) s = Reshape (v, heads) k = Transpose <perm = [0, 2, 1, 3]> (s)
    t = Transpose <perm = [0, 1, 3, 2]> (k)
    m = MatMul (a, t) p = Softmax (m) y = MatMul (p, k)
}"""

SMALL = 0.1 * np.random.default_rng(0).normal(size=(64, 64))
"""Weights that leave the Softmax soft."""

MODELS = {
    "network": (NETWORK, {"six": 6}),
    "attention": (ATTENTION, {"heads": [1, 32, 4, 16], "w": SMALL}),
}


def flow_of(name, **options):
    text, given = MODELS[name]
    return quantize(
        parse(text, **{k: v for k, v in given.items() if v is not None}), "tensorrt-fp8", **options
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["minmax", "auto", "mse", "percentile", "moving-average"])
def test_runtimes_compute_the_same_and_close_to_float(name, method):
    flow = flow_of(name, method=method)
    onnx.checker.check_model(to_proto(flow.int8), full_check=True)
    plain, fused = (run(flow.int8, flow.feeds, optimize)[0] for optimize in (False, True))
    assert sqnr(run(flow.model, flow.feeds)[0], plain) > 20
    assert sqnr(plain, fused) > 60, "fusions may not take FP8 for integers"


@pytest.mark.parametrize("name", MODELS)
def test_zero_points_and_weights_are_fp8(name):
    flow = flow_of(name)
    pairs = [node for node in all_nodes(flow.int8) if node.op_type in (QUANTIZE, DEQUANTIZE)]
    assert pairs
    for node in pairs:
        zero = node.inputs[2].const_value
        assert zero.dtype == FP8
        assert not zero.numpy().astype(np.float32).any()
    assert flow.int8.graph.opset_imports[""] == 19
    stored = [v for v in flow.int8.graph.initializers.values() if v.name.endswith("_quantized")]
    assert stored
    assert {value.dtype for value in stored} == {FP8}


def test_what_is_quantized():
    flow = flow_of("network")
    assert set(flow.plan.integer_nodes) == {f"{kind}_{x}" for kind, x in INTEGERS}
    reasons = {name: node.reason for name, node in flow.plan.float_nodes.items()}
    assert "with 1 channels" in reasons["Conv_d"]
    assert "no FP8 kernel for Add" in reasons["Add_t"]


INTEGERS = (("Conv", "c"), ("Conv", "e"), ("Conv", "f"), ("Conv", "h"), ("MatMul", "y"))


@pytest.mark.parametrize(
    ("shape", "pads", "reason"),
    [
        ("32,24,7,7", 3, "its window has 49 elements"),
        ("32,24,5,5", 2, None),
        ("16,24,3,3", 1, "with 16 channels"),
        ("17,24,3,3", 1, None),
    ],
)
def test_few_channels_and_large_windows_stay_float(shape, pads, reason):
    text = f"""g (float[1,24,9,9] x) => (float[1,Z,9,9] y) <float[{shape}] w, float[24,24,1,1] v> {{
        h = Conv (x, v) y = Conv <pads = [{", ".join([str(pads)] * 4)}]> (h, w)
    }}"""
    flow = quantize(parse(text), "tensorrt-fp8")
    assert ("Conv_y" in flow.plan.integer_nodes) == (reason is None)
    assert reason is None or reason in flow.plan.float_nodes["Conv_y"].reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "int8"}, "does not take int8 as activation type; valid: float8e4m3fn"),
        ({"weight": "int8"}, "does not take int8 as weight type; valid: float8e4m3fn"),
        ({"method": "entropy"}, "method entropy counts evenly wide buckets"),
        ({"override": "op:Conv: method=entropy"}, "method entropy counts evenly wide buckets"),
        ({"block_size": 64}, "takes no weights with one scale per block"),
    ],
)
def test_what_has_no_meaning_is_refused(options, words):
    with pytest.raises(onnxq.TargetError, match=words):
        find_formats(get_target("tensorrt-fp8"), QuantConfig(target="tensorrt-fp8", **options))


@pytest.fixture
def written(tmp_path):
    """The float network, samples of it, and its FP8 model as the public function writes it."""
    text, given = MODELS["network"]
    ir.save(parse(text, **given), tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    data = [{"x": rng.normal(size=(1, 24, 8, 8)).astype(np.float32)} for _ in range(24)]
    config = QuantConfig(target="tensorrt-fp8", table=(tmp_path / "t.json",), report=tmp_path / "r.html")
    result = onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", data, config)
    return tmp_path, data, result


def test_the_whole_command_and_what_reads_its_result(written):
    folder, data, result = written
    assert result.quality is not None
    table = QuantConfig(target="tensorrt-fp8", from_table=folder / "t.json")
    again = onnxq.quantize_static(folder / "m.onnx", folder / "again.onnx", None, table)
    for name, params in again.plan.params.items():
        if not again.plan.groups[name].constant:
            np.testing.assert_array_equal(params.scale, result.plan.params[name].scale)
    back = onnxq.requantize(folder / "q.onnx", folder / "int8.onnx", data, QuantConfig(target="tensorrt"))
    assert len(back.plan.integer_nodes) >= len(INTEGERS)
    same = onnxq.requantize(folder / "q.onnx", folder / "fp8.onnx", data, table.changed(from_table=None))
    assert set(same.plan.integer_nodes) == set(result.plan.integer_nodes)


def test_tables_of_integers_are_refused(tmp_path):
    text, given = MODELS["network"]
    ir.save(parse(text, **given), tmp_path / "m.onnx")
    config = QuantConfig(target="tensorrt-fp8", table=(tmp_path / "t.cache",))
    with pytest.raises(onnxq.CalibrationError, match="tensorrt tables hold scales of integers"):
        onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "q.onnx", None, config)


def test_the_sensitivity_of_a_group_is_that_of_its_pair():
    """Fake quantization by Casts gives what Q and DQ give."""
    flow = flow_of("network")
    draft = Draft(flow.simple, flow.simple, flow.plan, {})
    group = next(g for g in flow.plan.groups.values() if not g.constant)
    alone = run(quantize_alone(draft, group).model, flow.feeds)[0]
    points = tuple(p for p in flow.plan.points if p.group == group.name)
    pair = Draft(flow.simple, flow.simple, replace(flow.plan, points=points), {}).quantized()
    np.testing.assert_allclose(alone, run(pair, flow.feeds)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_engines_compute_in_fp8(written):
    _, _, result = written
    verdict = next(each for each in result.verdicts if each.runtime == "tensorrt")
    assert verdict.status == "passed"
    assert "for SM89 and SM120" in verdict.summary
    assert f"{len(INTEGERS)} of 6 operators with weights run in FP8" in verdict.summary


def test_the_target_names_what_to_build_for():
    assert get_target("tensorrt-fp8").capabilities == ("SM89", "SM120")
