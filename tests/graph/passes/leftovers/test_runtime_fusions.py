"""Models that ONNX Runtime has written after its own optimizations."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from graphs import assert_same_outputs, op_counts, parse

import onnxq
from onnxq.graph.passes import simplify
from onnxq.graph.passes.leftovers.runtime_fusions import PARAMETERS, UnfuseRuntimeFusionsPass

IMAGES = (
    "g (float[N,4,6,6] x) => (float[N,8,6,6] y) <float[8,4,3,3] w, float[8] b, float[8,4,1,1] v, float[8] c>"
)
ROWS = "g (float[N,12] x) => (float[N,9] y) <float[12,9] w, float[9] b>"
CONV = "a = Conv <pads = [1,1,1,1]> (x, w, b)"

FUSED = {
    "relu": (f"{IMAGES} {{ {CONV} y = Relu (a) }}", "Relu"),
    "leaky relu": (f"{IMAGES} {{ {CONV} y = LeakyRelu <alpha = 0.2> (a) }}", "LeakyRelu"),
    "sigmoid": (f"{IMAGES} {{ {CONV} y = Sigmoid (a) }}", "Sigmoid"),
    "tanh": (f"{IMAGES} {{ {CONV} y = Tanh (a) }}", "Tanh"),
    "clip": (
        f"{IMAGES[:-1]}, float l = {{-0.5}}, float h = {{1.5}}> {{ {CONV} y = Clip (a, l, h) }}",
        "Clip",
    ),
    "gemm": (f"{ROWS} {{ a = Gemm (x, w, b) y = Relu (a) }}", "Relu"),
    "gemm, leaky": (
        f"{ROWS} {{ a = Gemm <alpha = 0.5> (x, w, b) y = LeakyRelu <alpha = 0.3> (a) }}",
        "LeakyRelu",
    ),
    "gemm, elu": (f"{ROWS} {{ a = Gemm (x, w, b) y = Elu <alpha = 0.7> (a) }}", "Elu"),
    "transposed product": (
        "g (float[N,5,6] x, float[N,7,6] z) => (float[N,5,7] y) "
        "{ t = Transpose <perm = [0,2,1]> (z) y = MatMul (x, t) }",
        "Transpose",
    ),
    "scaled product": (
        "g (float[N,5,6] x, float[N,6,7] z) => (float[N,5,7] y) <float s = {0.25}> "
        "{ a = MatMul (x, z) y = Mul (a, s) }",
        "Mul",
    ),
}


def written(model, path, level=ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED):
    """The model as ONNX Runtime writes it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = level
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return path


def foreign(model):
    return {node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph) if node.domain}


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("kind", FUSED)
def test_what_the_runtime_fused_is_taken_apart(tmp_path, kind, opset):
    text, part = FUSED[kind]
    before = parse(text, opset)
    fused = ir.load(written(before, tmp_path / "fused.onnx"))
    assert foreign(fused) <= {"FusedConv", "FusedGemm", "FusedMatMul"}
    assert foreign(fused), "the runtime fuses something"
    after = simplify(fused)
    assert not foreign(after)
    assert part in op_counts(after)
    assert len({n.name for n in after.graph}) == len(after.graph)
    assert_same_outputs(before, after)


def test_in_the_bodies_of_an_if(tmp_path):
    text = """g (float[N,4,6,6] x, bool c) => (float[N,8,6,6] y) <float[8,4,3,3] w, float[8] b>
    { y = If (c) <then_branch = t () => (float[N,8,6,6] u) { a = Conv <pads = [1,1,1,1]> (x, w, b) u = Relu (a) },
                  else_branch = e () => (float[N,8,6,6] v) { d = Conv <pads = [1,1,1,1]> (x, w, b) v = Tanh (d) }> }"""
    before = parse(text)
    fused = ir.load(written(before, tmp_path / "fused.onnx"))
    assert foreign(fused) == {"FusedConv"}
    after = simplify(fused)
    assert not foreign(after)
    assert_same_outputs(before, after)


def fused_conv(**attributes):
    model = parse(f"{IMAGES} {{ y = Conv <pads = [1,1,1,1]> (x, w, b) }}")
    node = model.graph[0]
    node.op_type, node.domain = "FusedConv", "com.microsoft"
    node.attributes.update({a.name: a for a in ir._convenience.convert_attributes(attributes)})
    model.graph.opset_imports["com.microsoft"] = 1
    return model


@pytest.mark.parametrize(
    "attributes",
    [
        {"activation": "Mystery"},
        {"activation": "LeakyRelu"},
        {"activation": "Clip", "activation_params": [1.0]},
    ],
)
def test_a_form_that_is_not_known_stays(attributes):
    assert op_counts(simplify(fused_conv(**attributes))) == {"FusedConv": 1}


@pytest.mark.parametrize("activation", ["", *PARAMETERS])
def test_every_activation(activation):
    count = len(PARAMETERS.get(activation, ()))
    attributes = {"activation": activation} if activation else {}
    attributes |= {"activation_params": [-0.3, 0.6][:count]} if count else {}
    before = fused_conv(**attributes)
    after = before.clone()
    assert UnfuseRuntimeFusionsPass()(after).modified
    assert op_counts(after) == ({"Conv": 1, activation: 1} if activation else {"Conv": 1})
    assert_same_outputs(before, after)
    assert_same_outputs(before, simplify(before))


@pytest.mark.parametrize("activation", ["", "Relu"])
def test_a_sum_in_the_convolution(activation):
    before = fused_conv(**({"activation": activation} if activation else {}))
    summand = ir.val("z", ir.DataType.FLOAT, ["N", 8, 6, 6])
    before.graph.inputs.append(summand)
    before.graph[0].resize_inputs(4)
    before.graph[0].replace_input_with(3, summand)
    after = simplify(before)
    assert op_counts(after) == {"Conv": 1, "Add": 1} | ({activation: 1} if activation else {})
    assert_same_outputs(before, after)


NET = """g (float[N,4,16,16] x) => (float[N,3] y)
<float[16,4,3,3] w1, float[16] b1, float[16,16,3,3] w2, float[16] b2, float[16,3] v, float[3] c> {
    a = Conv <pads = [1,1,1,1]> (x, w1, b1) r = Relu (a) d = Conv <pads = [1,1,1,1]> (r, w2, b2)
    s = Add (d, r) t = Relu (s) p = GlobalAveragePool (t) f = Flatten (p) y = Gemm (f, v, c)
}"""


def test_such_a_model_is_quantized_like_the_original(tmp_path):
    data = [{"x": x} for x in np.random.default_rng(0).standard_normal((10, 1, 4, 16, 16)).astype(np.float32)]
    path = written(parse(NET, 17), tmp_path / "fused.onnx")
    config = onnxq.QuantConfig(threads=1, verify="off")
    result = onnxq.quantize_static(path, tmp_path / "o.onnx", data, config)
    assert sorted(result.plan.integer_nodes.values()).count("Conv") == 2
    assert not result.plan.float_nodes
    assert result.quality.sqnr > 20


@pytest.mark.parametrize("command", [onnxq.quantize_static, onnxq.quantize_dynamic])
def test_a_layout_of_one_kind_of_processor_is_refused(tmp_path, command):
    model = parse(NET, 17)
    model.graph[0].domain = "com.microsoft.nchwc"
    model.graph.opset_imports["com.microsoft.nchwc"] = 1
    ir.save(model, tmp_path / "m.onnx")
    with pytest.raises(onnxq.ModelError, match=r"optimized by ONNX Runtime .*Give the original model"):
        command(tmp_path / "m.onnx", tmp_path / "o.onnx")
