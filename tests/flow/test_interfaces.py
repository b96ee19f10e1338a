"""Models with inputs and outputs other than tensors of a known shape."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq

RNG = np.random.default_rng(0)
DATA = [{"x": RNG.standard_normal((1, 40)).astype(np.float32)} for _ in range(30)]
CONFIG = onnxq.QuantConfig(threads=1, verify="off")


def constant(shape):
    return (
        np.random.default_rng(1).standard_normal(shape)
        / np.sqrt(shape if isinstance(shape, int) else shape[0])
    ).astype(np.float32)


def classifier(tail, outputs, opset=17, extra=(), **more):
    """Two fully connected layers that give scores ``s`` and probabilities ``p`` [N, 8], and a tail."""
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], "fc0"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w1", "b1"], ["s"], "fc1"),
        helper.make_node("Softmax", ["s"], ["p"], "softmax", axis=1),
        *tail,
    ]
    constants = {
        "w0": constant((40, 48)),
        "b0": constant(48),
        "w1": constant((48, 8)),
        "b1": constant(8),
    } | more
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 40]), *extra],
        outputs,
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def ml(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, op.lower(), domain="ai.onnx.ml", **attributes)


TENSOR = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
MAPS = {
    kind: helper.make_sequence_type_proto(
        helper.make_map_type_proto(kind, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    )
    for kind in (TensorProto.STRING, TensorProto.INT64)
}
LABEL = helper.make_node("ArgMax", ["p"], ["label"], "argmax", axis=1, keepdims=0)
LABEL_INFO = helper.make_tensor_value_info("label", TensorProto.INT64, ["N"])

TAILS = {
    "maps with text": (
        [LABEL, ml("ZipMap", ["p"], ["q"], classlabels_strings=list("abcdefgh"))],
        [LABEL_INFO, helper.make_value_info("q", MAPS[TensorProto.STRING])],
    ),
    "maps with numbers": (
        [LABEL, ml("ZipMap", ["p"], ["q"], classlabels_int64s=list(range(8)))],
        [LABEL_INFO, helper.make_value_info("q", MAPS[TensorProto.INT64])],
    ),
    "maps alone": (
        [ml("ZipMap", ["p"], ["q"], classlabels_int64s=list(range(8)))],
        [helper.make_value_info("q", MAPS[TensorProto.INT64])],
    ),
    "sequence": (
        [helper.make_node("SequenceConstruct", ["p", "s"], ["q"], "pair")],
        [helper.make_value_info("q", helper.make_sequence_type_proto(TENSOR))],
    ),
    "optional": (
        [helper.make_node("Optional", ["p"], ["q"], "maybe")],
        [helper.make_value_info("q", helper.make_optional_type_proto(TENSOR))],
    ),
    "text": (
        [LABEL, ml("LabelEncoder", ["label"], ["q"], classes_strings=list("abcdefgh"))],
        [helper.make_tensor_value_info("q", TensorProto.STRING, ["N"])],
    ),
}


def outputs(path):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {"x": np.concatenate([sample["x"] for sample in DATA])}
    return [o.type for o in session.get_outputs()], session.run(None, feeds)


def flat(output):
    """The numbers or texts of an output of any kind."""
    if isinstance(output, list):
        output = [list(part.values()) if isinstance(part, dict) else part for part in output]
    return np.asarray(output)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("opset", [12, 17])
@pytest.mark.parametrize("kind", TAILS)
def test_outputs_that_are_no_tensors(tmp_path, kind, opset, mode):
    if kind == "optional" and opset < 15:
        pytest.skip("Optional came with opset 15")
    model, int8 = tmp_path / "m.onnx", tmp_path / "int8.onnx"
    onnx.save(classifier(*TAILS[kind], opset=opset), model)
    if mode == "static":
        onnxq.quantize_static(model, int8, DATA, CONFIG)
    else:
        onnxq.quantize_dynamic(model, int8, onnxq.QuantConfig(threads=1), DATA)
    onnx.checker.check_model(int8)
    (types, expected), (given_types, given) = outputs(model), outputs(int8)
    assert given_types == types
    for one, other in zip(map(flat, expected), map(flat, given), strict=True):
        if one.dtype.kind == "f":
            assert np.square(one - other).sum() < 0.01 * np.square(one).sum()
        else:
            assert np.mean(one == other) > 0.7


INPUTS = {
    "sequence": (
        helper.make_value_info("z", helper.make_sequence_type_proto(TENSOR)),
        helper.make_node("SequenceAt", ["z", "first"], ["e"], "at"),
        r"sequence|Sequence",
    ),
    "map": (
        helper.make_value_info(
            "z",
            helper.make_map_type_proto(
                TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
            ),
        ),
        ml("DictVectorizer", ["z"], ["e"], string_vocabulary=list("abcdefgh")),
        r"map\(string,tensor\(float\)\)",
    ),
    "optional": (
        helper.make_value_info("z", helper.make_optional_type_proto(TENSOR)),
        helper.make_node("OptionalGetElement", ["z"], ["e"], "get"),
        "Optional",
    ),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_inputs_that_are_no_tensors_are_named(tmp_path, kind, mode):
    info, node, text = INPUTS[kind]
    model = tmp_path / "m.onnx"
    total = helper.make_node("Add", ["s", "e"], ["y"], "total")
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    onnx.save(classifier([node, total], [out], extra=[info], first=np.array(0)), model)
    run = onnxq.quantize_static if mode == "static" else onnxq.quantize_dynamic
    with pytest.raises(onnxq.OnnxqError, match=rf"input 'z' is .*({text}).*Cut the model"):
        run(model, tmp_path / "o.onnx")
    assert not (tmp_path / "o.onnx").exists()


def test_an_operator_for_features_before_the_layers(tmp_path):
    """ONNX Runtime knows the type of its output but no shape, which is not the shape of a scalar."""
    proto = classifier([], [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 8])])
    proto.graph.node[0].input[0] = "scaled"
    proto.graph.node.insert(0, ml("Scaler", ["x"], ["scaled"], offset=[0.1] * 40, scale=[2.0] * 40))
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", DATA, CONFIG)
    assert {"fc0", "fc1"} <= set(result.plan.integer_nodes)
