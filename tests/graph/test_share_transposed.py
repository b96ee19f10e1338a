"""A matrix and its transpose are stored once, in any number format, and nothing else changes."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import optimized
from graphs import assert_same_outputs, feeds_for, op_counts, parse, run

import onnxq
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.graph.files import load, size_on_disk
from onnxq.graph.passes import simplify
from onnxq.graph.share_transposed import LEAST, share_equal, share_transposed

V, K = 600, 64

HEADS = {
    "transposed": "t = Transpose<perm=[1,0]>(table) y = MatMul(n, t)",
    "transposed by an exporter": "y = MatMul(n, turned)",
    "transposed behind an identity": "same = Identity(table) t = Transpose(same) y = MatMul(n, t)",
}


def tied(head="transposed", sizes="N,M", weight=True):
    """A model whose table is its last matrix too."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((V, K)) * np.geomspace(0.1, 1, V)[:, None]
    given = {"turned": table.T} if "exporter" in head else {}
    declared = f"float[{K},{V}] turned," if given else ""
    return parse(
        f"""g (int64[{sizes}] i) => (float[{sizes},{V}] y)
        <float[{V},{K}] table, {declared} float[{K},{K}] w> {{ e = Gather(table, i) n = MatMul(e, w) {HEADS[head]} }}""",
        table=table, w=rng.standard_normal((K, K)) / 8, **given,
    )  # fmt: skip


def gemm():
    """The last layer transposes the table by itself."""
    return parse(
        f"""g (int64[N] i) => (float[N,{V}] y) <float[{V},{K}] table, float[{K},{K}] w> {{
            e = Gather(table, i) n = MatMul(e, w) y = Gemm<transB=1>(n, table)
        }}"""
    )


TIED = {
    **{name: lambda name=name: tied(name) for name in HEADS},
    "two axes": lambda: tied(sizes="N"),
    "gemm": gemm,
}
ONCE = V * K


def stored(model, least=LEAST):
    """The sizes of large constants by type."""
    return [
        (value.dtype.name, value.const_value.size)
        for value in model.graph.initializers.values()
        if value.const_value.size >= least
    ]


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize(
    ("options", "kind", "share"),
    [
        ({}, "INT8", 0.29),
        ({"weight": "float16"}, "FLOAT16", 0.53),
        ({"target": "openvino"}, "INT8", 0.29),
        ({"target": "tensorrt", "weight": "float16"}, "FLOAT16", 0.53),
        ({"target": "onnxruntime-avx2", "per_tensor": True}, "INT8", 0.29),
    ],
    ids=str,
)
def test_dynamic_quantization_stores_a_tied_table_once(name, options, kind, share, tmp_path):
    source, out = tmp_path / "float.onnx", tmp_path / "out.onnx"
    ir.save(TIED[name](), source)
    result = onnxq.quantize_dynamic(source, out, QuantConfig(mode="dynamic", correct=("none",), **options))
    assert len(result.plan.integer_nodes) == 3
    written = load(out)
    assert stored(written) == [(kind, ONCE)]
    assert size_on_disk(out) < share * (ONCE + K * K) * 4 + 4000
    feeds = feeds_for(written, i=np.arange(6).reshape(-1, *[1] * (len(written.graph.inputs[0].shape) - 1)))
    outputs = [open_session(path).run(None, feeds)[0] for path in (source, out)]
    assert sqnr(*outputs) > (10 if "per_tensor" in options else 25)
    if options == {}:
        assert op_counts(ir.from_proto(optimized(written))).get("Transpose", 0) == 0, (
            "it is folded at loading"
        )


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"correct": ("none",)}, 0.29),
        ({}, 0.54),
        ({"weight": "uint8"}, 0.54),
        ({"weight": "int4"}, 0.42),
        ({"weight": "int4", "block_size": 32}, 0.45),
        ({"target": "onnxruntime-avx2", "per_tensor": True, "correct": ("none",)}, 0.54),
    ],
    ids=str,
)
def test_static_quantization_looks_up_a_tied_table_in_integers(name, options, shares, tmp_path):
    source, out = tmp_path / "float.onnx", tmp_path / "out.onnx"
    model = TIED[name]()
    ir.save(model, source)
    ids = np.random.default_rng(0).integers(0, V, (20, *[5] * (len(model.graph.inputs[0].shape) - 1)))
    result = onnxq.quantize_static(source, out, [{"i": ids}], QuantConfig(verify="off", **options))
    written = load(out)
    assert {kind for kind, _ in stored(written)} <= {"INT8", "UINT8", "INT4"}
    assert size_on_disk(out) < shares * (ONCE + K * K) * 4 + 4000
    assert [result.plan.float_nodes[name].op_type for name in result.plan.weight_only_nodes] == ["Gather"]
    outputs = [open_session(path).run(None, {"i": ids})[0] for path in (source, out)]
    assert sqnr(*outputs) > (8 if "int4" in options.values() or "per_tensor" in options else 25)


@pytest.mark.parametrize(
    ("options", "head"),
    [
        ({"exclude": ("Gather_e",)}, "transposed"),
        ({"exclude": ("MatMul_y",)}, "transposed"),
        ({"target": "tensorrt", "float_type": "float32"}, "transposed"),
    ],
    ids=str,
)
def test_a_table_that_must_stay_float_is_looked_up_in_float(options, head, tmp_path):
    source, out = tmp_path / "float.onnx", tmp_path / "out.onnx"
    ir.save(tied(head), source)
    ids = np.random.default_rng(0).integers(0, V, (20, 5))
    result = onnxq.quantize_static(source, out, [{"i": ids}], QuantConfig(verify="off", **options))
    assert stored(load(out))[0] == ("FLOAT", ONCE)
    assert len([kind for kind, _ in stored(load(out)) if kind == "FLOAT"]) == 1
    assert not result.plan.weight_only_nodes


def test_a_file_that_is_larger_than_float_is_told(tmp_path):
    source, out = tmp_path / "float.onnx", tmp_path / "out.onnx"
    ir.save(tied(), source)
    ids = np.random.default_rng(0).integers(0, V, (20, 5))
    for exclude, larger in ((("Gather_e",), True), ((), False)):
        config = QuantConfig(verify="off", exclude=exclude)
        result = onnxq.quantize_static(source, out, [{"i": ids}], config)
        told = [warning for warning in result.warnings if "LARGER THAN FLOAT" in warning]
        assert len(told) == larger
        assert all("both types" in warning for warning in told)


@pytest.mark.parametrize("name", TIED)
def test_what_stays_float_is_stored_once(name):
    before = simplify(TIED[name]())
    after = before.clone()
    share_transposed(after)
    assert stored(after) == [("FLOAT", ONCE)]
    assert_same_outputs(before, after)
    np.testing.assert_array_equal(run(before)[0], open_session(after).run(None, feeds_for(after))[0])


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,64] x) => (float[N,64] y) <float[64,300] a, float[300,64] b> { h = MatMul(x, a) y = MatMul(h, b) }",
        "g (float[N,64] x) => (float[N,64] y) <float[64,8] a> { h = MatMul(x, a) t = Transpose(a) y = MatMul(h, t) }",
    ],
    ids=["other numbers", "small"],
)
def test_others_stay(text):
    before = simplify(parse(text))
    after = before.clone()
    share_transposed(after)
    assert op_counts(after) == op_counts(before)


def test_a_graph_output_stays_what_it_is():
    text = f"""g (float[N,{K}] x) => (float[N,{K}] y, float[{K},{V}] a) <float[{V},{K}] b, float[{K},{V}] a> {{
        h = MatMul(x, a) y = MatMul(h, b)
    }}"""
    matrix = np.random.default_rng(0).standard_normal((K, V))
    before = parse(text, a=matrix, b=matrix.T)
    after = before.clone()
    share_transposed(after)
    assert stored(after) == [("FLOAT", ONCE)]
    assert_same_outputs(before, after)


@pytest.mark.parametrize("changed", [False, True])
def test_equal_matrices_are_stored_once(changed, monkeypatch, tmp_path):
    monkeypatch.setattr("onnxq.graph.share_transposed.PART", 1000)
    text = f"""g (float[N,{K}] x) => (float[N,{V}] y, float[N,{V}] z) <float[{K},{V}] a, float[{K},{V}] b> {{
        y = MatMul(x, a) z = MatMul(x, b)
    }}"""
    matrix = np.random.default_rng(0).standard_normal((K, V)).astype(np.float32)
    other = matrix.copy()
    other[-1, -2] += changed
    ir.save(
        parse(text, a=matrix, b=other), tmp_path / "m.onnx", external_data="m.bin", size_threshold_bytes=0
    )
    before = load(tmp_path / "m.onnx")
    after = before.clone()
    share_equal(after)
    assert stored(after) == [("FLOAT", ONCE)] * (1 + changed)
    assert_same_outputs(before, after)
