"""Weights of 4 bits and weights in blocks: what is in the file, and what the runtime makes of it."""

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from flow import EXACT, assert_close, check, check_integer_kernels, check_legal, quantize, run
from graphs import parse

import zoo
from calibrators.session import open_session
from onnxq.core.numerics import dequantize, sqnr
from onnxq.graph.files import write
from onnxq.graph.passes import simplify
from onnxq.verify.onnxruntime import kernels, unfused

NETWORK = """g (float[N,16,8,8] x) => (float[N,10] y)
<float[32,16,3,3] k, float[32] kb, float[32,32,1,1] l, float[32] lb, float[10,32] m, float[10] mb> {
    c = Conv <pads=[1,1,1,1]> (x, k, kb) r = Relu (c) d = Conv (r, l, lb) a = Add (d, r)
    p = GlobalAveragePool (a) f = Flatten (p) y = Gemm <transB=1> (f, m, mb)
}"""

DENSE = """g (float[N,L,72] x) => (float[N,L,40] y) <float[72,48] w, float[48] b, float[48,40] v> {
    h = MatMul (x, w) i = Add (h, b) j = Tanh (i) y = MatMul (j, v)
}"""

MATRIX = "g (float[N,72] x) => (float[N,40] y) <float[72,40] w, float[40] b> { y = Gemm (x, w, b) }"


@pytest.mark.parametrize("opset", [11, 13, 17, 21])
@pytest.mark.parametrize("weight", ["int4", "uint4"])
def test_4_bit_weights_run_in_integer_kernels(opset, weight):
    flow = quantize(parse(NETWORK, opset=opset), weight=weight)
    check(flow, at_least=8)
    assert flow.int8.graph.opset_imports[""] == 21
    assert flow.int8.ir_version >= 10


@pytest.mark.parametrize("weight", ["int4", "uint4"])
def test_the_file_holds_4_bits_a_weight(weight, tmp_path):
    text = "g (float[N,256,1,1] x) => (float[N,256,1,1] y) <float[256,256,1,1] k> { c = Conv (x, k) y = Tanh (c) }"
    flow = quantize(parse(text), weight=weight)
    write(flow.int8, tmp_path / "m.onnx")
    weights, scales = 256 * 256 / 2, 256 * (4 + 1) + (256 / 2 if weight == "uint4" else 0)
    assert weights + scales < (tmp_path / "m.onnx").stat().st_size < weights + scales + 2000
    stored = next(t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if t.name == "k_quantized")
    assert stored.data_type == onnx.TensorProto.DataType.Value(weight.upper())
    assert "QLinearConv" in kernels(tmp_path / "m.onnx").values()


def test_an_odd_number_of_4_bit_weights(tmp_path):
    flow = quantize(
        parse(
            "g (float[N,3,4,4] x) => (float[N,1,4,4] y) <float[1,3,1,1] k> { c = Conv (x, k) y = Neg (c) }"
        ),
        weight="int4",
    )
    write(flow.int8, tmp_path / "m.onnx")
    np.testing.assert_array_equal(
        run(ir.load(tmp_path / "m.onnx"), flow.feeds)[0], run(flow.int8, flow.feeds)[0]
    )


DEPTHWISE = """g (float[N,16,8,8] x) => (float[N,16,8,8] y)
<float[16,16,1,1] a, float[16,1,3,3] k, float[16,16,1,1] b> {
    c = Conv (x, a) d = Conv <group=16, pads=[1,1,1,1]> (c, k) e = Conv (d, b) y = Tanh (e)
}"""


@pytest.mark.parametrize("weight", ["int4", "uint4"])
def test_kernels_get_weights_without_zero_points(weight, tmp_path):
    """With them, that of depthwise convolutions is many times slower than float."""
    flow = quantize(parse(DEPTHWISE), weight=weight)
    write(flow.int8, tmp_path / "m.onnx")
    open_session(tmp_path / "m.onnx", save_fused=tmp_path / "fused.onnx")
    fused = ir.load(tmp_path / "fused.onnx").graph
    convolutions = [node for node in fused if node.op_type == "QLinearConv"]
    assert len(convolutions) == 3
    for node in convolutions:
        weights, zero = (node.inputs[i].const_value.numpy() for i in (3, 5))
        assert weights.dtype == np.int8
        assert not zero.any()
    asymmetric = any(
        flow.plan.params[g.name].zero_point.any() for g in flow.plan.groups.values() if g.constant
    )
    assert asymmetric is (weight == "uint4")


def test_weights_are_stored_as_the_plan_says():
    flow = quantize(parse(NETWORK), weight="int4")
    initializers = flow.int8.graph.initializers
    for group in (g for g in flow.plan.groups.values() if g.constant):
        assert group.cast_to == ir.DataType.INT8
        levels = initializers[f"{group.name}_quantized"].const_value.numpy()
        real = flow.simple.graph.initializers[group.name].const_value.numpy()
        params = flow.plan.params[group.name]
        back = dequantize(levels, params, group.spec)
        step = params.scale.reshape(-1, *[1] * (real.ndim - 1))
        inside = np.abs(real) < 7 * step
        assert (np.abs(back - real) <= 0.5001 * step)[inside].all()
        assert initializers[f"{group.name}_zero_point"].dtype == ir.DataType.INT8


@pytest.mark.parametrize("weight", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize("size", [16, 32, 128])
@pytest.mark.parametrize("text", [DENSE, MATRIX], ids=["MatMul", "Gemm"])
def test_weights_in_blocks_run_in_one_kernel(weight, size, text, tmp_path):
    flow = quantize(parse(text), weight=weight, block_size=size)
    onnx.checker.check_model(ir.to_proto(flow.int8), full_check=True)
    expected, plain = run(flow.model, flow.feeds)[0], run(flow.int8, flow.feeds, optimize=False)[0]
    assert sqnr(expected, plain) > (10 if "4" in weight else 35)
    assert sqnr(plain, run(flow.int8, flow.feeds)[0]) > EXACT
    ir.save(flow.int8, tmp_path / "m.onnx")
    assert list(kernels(tmp_path / "m.onnx").values()).count("MatMulNBits") == len(flow.plan.integer_nodes)
    assert unfused(tmp_path / "m.onnx", flow.plan.integer_nodes) == ()


def check_blocks(flow, at_least):
    onnx.checker.check_model(ir.to_proto(flow.int8), full_check=True)
    check_legal(flow)
    plain = run(flow.int8, flow.feeds, optimize=False)
    assert_close(flow, run(flow.model, flow.feeds, optimize=False), plain, at_least)
    assert_close(flow, plain, run(flow.int8, flow.feeds), EXACT)
    check_integer_kernels(flow)


FOLLOWED = {
    "relu": "r = Relu (h) y = Neg (r)",
    "clip": "r = Clip (h, l, u) y = Neg (r)",
    "relu and clip": "r = Relu (h) c = Clip (r, l, u) y = Neg (c)",
    "hard sigmoid": "r = HardSigmoid (h) y = Neg (r)",
    "bias, relu": "a = Add (h, b) r = Relu (a) y = Neg (r)",
    "computed addend": "y = Add (h, m)",
    "computed addend, relu": "a = Add (h, m) r = Relu (a) y = Neg (r)",
    "row": "a = Add (r, h) y = Neg (a)",
    "last relu": "y = Relu (h)",
    "two readers": "r = Relu (h) a = Add (r, h) y = Neg (a)",
}
"""What may follow a product; the runtime would fuse most of it in float."""


@pytest.mark.parametrize("columns", [40, 1])
@pytest.mark.parametrize("sizes", ["N", "4", "N,L", "2,4", "2,N,L"])
@pytest.mark.parametrize("name", FOLLOWED)
def test_blocks_run_in_their_kernel_whatever_follows(name, sizes, columns):
    row = ", float[COLUMNS] r" if name == "row" else ""
    text = f"""g (float[SIZES,72] x, float[SIZES,COLUMNS] m{row}) => (float[SIZES,COLUMNS] y)
    <float[72,COLUMNS] w, float[COLUMNS] b, float l, float u> {{ h = MatMul (x, w) {FOLLOWED[name]} }}"""
    text = text.replace("SIZES", sizes).replace("COLUMNS", str(columns))
    flow = quantize(parse(text, l=-0.5, u=2), weight="int8", block_size=32)
    assert [point.spec.block_size for point in flow.plan.points] == [32]
    check_blocks(flow, at_least=35)


@pytest.mark.parametrize("act", ["Relu", "Neg"])
@pytest.mark.parametrize("bias", ["", ", b", ", m"])
def test_blocks_of_a_gemm_run_in_their_kernel(act, bias):
    text = f"""g (float[N,72] x, float[N,40] m) => (float[N,40] y) <float[72,40] w, float[40] b> {{
        h = Gemm (x, w{bias}) r = {act} (h) y = Neg (r)
    }}"""
    flow = quantize(parse(text), weight="int8", block_size=32)
    assert [point.spec.block_size for point in flow.plan.points] == [32]
    check_blocks(flow, at_least=35)


def layers(count, product):
    steps = (f"h{i} = {product.format(x=f't{i}')} t{i + 1} = Tanh (h{i})" for i in range(count))
    text = f"""g (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64] b> {{
        t0 = Neg (x) {" ".join(steps)} y = Neg (t{count})
    }}"""
    return parse(text, w=np.random.default_rng(0).standard_normal((64, 64)) / 16)


@pytest.mark.parametrize("product", ["MatMul ({x}, w)", "Gemm ({x}, w, b)"])
@pytest.mark.parametrize(("weight", "most"), [("int4", 6), ("uint4", 6), ("int8", 3)])
def test_shared_weights_are_copied_as_long_as_that_is_smaller_than_float(product, weight, most, caplog):
    """A weight and its share of scale and zero point take 5, 5.1 and 9 bits."""
    flow = quantize(layers(most, product), weight=weight, block_size=32)
    assert [point.spec.block_size for point in flow.plan.points] == [32] * most
    check_blocks(flow, at_least=8)
    more = quantize(layers(most + 1, product), weight=weight, block_size=32)
    assert not any(point.spec.block_size for point in more.plan.points)
    check_integer_kernels(more)
    assert f"for {most + 1} MatMul or Gemm" in caplog.text


def test_other_targets_share_weights_in_blocks():
    flow = quantize(layers(3, "MatMul ({x}, w)"), "tensorrt", weight="int4", block_size=64)
    stored = [v for v in flow.int8.graph.initializers.values() if v.dtype == ir.DataType.INT4]
    assert len(stored) == 1
    assert flow.planned("MatMul") == 3


def test_smaller_blocks_are_closer():
    flows = [quantize(parse(MATRIX), weight="int4", block_size=size) for size in (16, 64, 256)]
    quality = [sqnr(run(f.model, f.feeds)[0], run(f.int8, f.feeds, optimize=False)[0]) for f in flows]
    assert quality == sorted(quality, reverse=True)


def test_zero_points_of_blocks_are_stored_only_where_there_are_some():
    symmetric, other = (
        quantize(parse(MATRIX), weight=kind, block_size=32).int8 for kind in ("int4", "uint4")
    )
    assert "w_zero_point" not in symmetric.graph.initializers
    zero = other.graph.initializers["w_zero_point"]
    assert zero.dtype == ir.DataType.UINT4
    assert list(zero.shape) == list(other.graph.initializers["w_scale"].shape) == [3, 40]


def test_blocks_in_the_midst_of_integers_are_given_up():
    text = """g (float[N,16,4,4] x) => (float[N,32,1,1] y) <float[32,16,4,4] k, float[32,32] w, float[32,32,1,1] l> {
        c = Conv (x, k) f = Flatten (c) m = MatMul (f, w) s = Constant <value_ints=[0,32,1,1]> ()
        r = Reshape (m, s) d = Conv (r, l) y = Neg (d)
    }"""
    flow = quantize(parse(text), weight="int4", block_size=16)
    check(flow, at_least=8)
    assert all(point.spec.block_size is None for point in flow.plan.points)
    assert flow.planned("MatMul") == 1


@pytest.mark.parametrize("trans", [0, 1])
def test_tensorrt_has_4_bit_matrices_in_blocks_alone(trans):
    text = f"""g (float[N,4,4,8] x) => (float[N,16] y) <float[4,4,3,3] k, float[{"16,128" if trans else "128,16"}] w, float[16] b> {{
        c = Conv <pads=[1,1,1,1]> (x, k) f = Flatten (c) y = Gemm <transB={trans}> (f, w, b)
    }}"""
    flow = quantize(parse(text), "tensorrt", weight="int4", block_size=64)
    onnx.checker.check_model(ir.to_proto(flow.int8), full_check=True)
    (node,) = [node for node in flow.int8.graph if node.op_type == "DequantizeLinear"]
    assert (node.attributes["axis"].as_int(), node.attributes["block_size"].as_int()) == (trans, 64)
    assert node.inputs[0].dtype == ir.DataType.INT4
    assert list(node.inputs[1].shape) == ([16, 2] if trans else [2, 16])
    assert not any(n.op_type == "Cast" for n in flow.int8.graph)
    assert sqnr(run(flow.model, flow.feeds)[0], run(flow.int8, flow.feeds, optimize=False)[0]) > 14


@pytest.mark.parametrize("name", ["squeezenet", "shufflenet"])
def test_an_old_export_becomes_4_bits(name):
    """Its opset is raised twice: by cleaning, and for the type."""
    model = simplify(ir.load(zoo.light(name)))
    flow = quantize(model, weight="int4")
    assert flow.int8.graph.opset_imports[""] == 21
    onnx.checker.check_model(ir.to_proto(flow.int8), full_check=True)
    check_integer_kernels(flow)
    assert ir.DataType.INT4 in {group.spec.dtype for group in flow.plan.groups.values() if group.constant}
