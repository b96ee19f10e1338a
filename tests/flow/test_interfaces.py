"""Models with inputs and outputs other than tensors of a known shape."""

import contextlib

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


# --- no declared shape, or a wrong one -----------------------------------------------------------------


def without_shapes(*names, nodes=(), opset=17):
    """A classifier with output ``p`` and more; the inputs and outputs called ``names`` have no shape."""
    infos = [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["N", 8])]
    infos += [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    proto = classifier(nodes, infos, opset)
    for info in (*proto.graph.input, *proto.graph.output):
        if info.name in names:
            info.type.tensor_type.ClearField("shape")
    return proto


def ranks(path):
    graph = onnx.load(path).graph
    return {info.name: len(info.type.tensor_type.shape.dim) for info in (*graph.input, *graph.output)}


PATCHED = ml("Scaler", ["s"], ["z"], offset=[0.1] * 8, scale=[2.0] * 8)
MEAN = helper.make_node("ReduceMean", ["z"], ["mean"], "mean", keepdims=0)


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize(
    ("names", "nodes", "expected"),
    [
        ("x", (), {"x": 2, "p": 2}),
        ("xp", (), {"x": 2, "p": 2}),
        ("xp", (PATCHED,), {"x": 2, "p": 2, "z": 2}),
        ("p", (PATCHED, MEAN), {"x": 2, "p": 2, "z": 2, "mean": 0}),
    ],
)
def test_inputs_and_outputs_without_a_shape(tmp_path, names, nodes, expected, mode):
    model, int8 = tmp_path / "m.onnx", tmp_path / "int8.onnx"
    onnx.save(without_shapes(*names, nodes=nodes), model)
    if mode == "static":
        result = onnxq.quantize_static(model, int8, DATA, CONFIG)
    else:
        result = onnxq.quantize_dynamic(model, int8, onnxq.QuantConfig(threads=1), DATA)
    onnx.checker.check_model(int8, full_check=True)
    assert ranks(int8) == expected
    assert result.quality.outputs["p"].sqnr > 20


def test_a_model_in_memory_without_shapes(tmp_path):
    onnxq.quantize_static(without_shapes("x", "p"), tmp_path / "int8.onnx", DATA, CONFIG)
    assert ranks(tmp_path / "int8.onnx") == {"x": 2, "p": 2}


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_an_input_without_a_shape_needs_data(tmp_path, mode):
    onnx.save(without_shapes("x"), tmp_path / "m.onnx")
    run = onnxq.quantize_static if mode == "static" else onnxq.quantize_dynamic
    with pytest.raises(onnxq.CalibrationError, match=r"input 'x' \(float32 of unknown shape\).*--data"):
        run(tmp_path / "m.onnx", tmp_path / "o.onnx")


def test_an_output_without_a_shape_needs_no_data(tmp_path):
    model = tmp_path / "m.onnx"
    onnx.save(without_shapes("p", nodes=[PATCHED]), model)
    onnxq.quantize_static(model, tmp_path / "a.onnx", None, CONFIG)
    onnxq.calibrate(model, DATA, onnxq.QuantConfig(threads=1)).save(tmp_path / "s.npz")
    config = onnxq.QuantConfig(threads=1, verify="off", from_table=tmp_path / "s.npz")
    onnxq.quantize_static(model, tmp_path / "b.onnx", None, config)
    for name in ("a.onnx", "b.onnx"):
        assert ranks(tmp_path / name) == {"x": 2, "p": 2, "z": 2}


def test_an_input_without_a_shape_and_ranges_from_a_table(tmp_path):
    onnx.save(without_shapes("x"), tmp_path / "m.onnx")
    onnxq.calibrate(tmp_path / "m.onnx", DATA, onnxq.QuantConfig(threads=1)).save(tmp_path / "s.npz")
    config = onnxq.QuantConfig(threads=1, verify="off", from_table=tmp_path / "s.npz")
    with pytest.raises(onnxq.ModelError, match=r"input 'x' .*Declare the input's shape"):
        onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", None, config)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (["N", 99], ["N", 8]),
        ([3, 8], ["N", 8]),
        (["N", 8, 1], ["N", 8]),
        ([], ["N", 8]),
        (["M", 8], ["M", 8]),
        (["N", "classes"], ["N", "classes"]),
    ],
)
def test_an_output_with_a_wrong_shape(tmp_path, caplog, declared, expected):
    proto = classifier([], [helper.make_tensor_value_info("p", TensorProto.FLOAT, declared)])
    onnx.save(proto, tmp_path / "m.onnx")
    onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", DATA, CONFIG)
    onnx.checker.check_model(tmp_path / "o.onnx", full_check=True)
    dims = onnx.load(tmp_path / "o.onnx").graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims][1] in (expected[1], 8)
    assert len(dims) == 2
    assert ("output 'p' is declared as" in caplog.text) == (declared != expected)


def test_a_wrong_shape_behind_a_reshape_that_nothing_can_infer(tmp_path):
    """The sizes inside contradict each other, and a foreign operator hides what is right."""
    nodes = [PATCHED, helper.make_node("Flatten", ["z"], ["flat"], "flatten")]
    proto = classifier(nodes, [helper.make_tensor_value_info("flat", TensorProto.FLOAT, ["N", 99])])
    proto.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 8, 1, 1]))
    onnx.save(proto, tmp_path / "m.onnx")
    onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", DATA, CONFIG)


@pytest.mark.parametrize("shape", [[2**31, 2**31, 40], [2**62, 2**62, 40], ["N", 2**40], [2**20, 2**10, 40]])
def test_an_input_that_is_declared_too_large(tmp_path, shape):
    product = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    graph = helper.make_graph(
        [product],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(constant((40, 64)), "w")],
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    with pytest.raises(onnxq.CalibrationError, match=r"input 'x' .*too large.*--data"):
        onnxq.quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx")
    with contextlib.suppress(onnxq.OnnxqError):  # it needs no samples, but the runtime may refuse the sizes
        onnxq.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "o.onnx")
