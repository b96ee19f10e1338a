"""Operators that ONNX Runtime has in the standard domain and ONNX has not."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, parse

import onnxq
from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET_OF_BLOCKS
from onnxq.graph.files import load, write
from onnxq.graph.passes import simplify
from onnxq.graph.runtime_operators import runtime_nodes

MATRICES = (
    "g (float[N,5,48] x) => (float[N,5,48] y) <float[48,48] w, float[48,48] w2, float[48] g, float[48] varb>"
)
IMAGES = "g (float[N,3,8,8] x) => (float[N,3,6,6] y) <float[3,3,1,1] w, float[3,3,3,3] w2>"


def between(declared, middle):
    product = "MatMul" if declared is MATRICES else "Conv"
    return f"{declared} {{ a = {product} (x, w)  {middle}  y = {product} (n, w2) }}"


IN_BRANCH = """c = Constant <value = bool {1}> ()
n = If (c) <then_branch = t () => (float[N,5,48] u) { u = SimplifiedLayerNormalization (a, g) },
            else_branch = e () => (float[N,5,48] v) { v = Identity (a) }>"""

CASES = {
    "root mean square": (
        between(MATRICES, "n = SimplifiedLayerNormalization <axis = -1> (a, g)"),
        (11, 14, 17),
    ),
    "layer normalization": (
        between(MATRICES, "n = LayerNormalization <axis = -1> (a, g, varb)"),
        (11, 13, 16),
    ),
    "without bias": (between(MATRICES, "n = LayerNormalization <epsilon = 0.01> (a, g)"), (12, 14)),
    "in a branch": (between(MATRICES, IN_BRANCH), (12, 15)),
}
EACH = [(name, opset) for name, (_, opsets) in CASES.items() for opset in opsets]


def model_of(name, opset):
    return parse(CASES[name][0], opset, check=False)


REMOVED = [
    "ImageScaler <bias = [0.1, 0.2, 0.3]>",
    "Affine <alpha = 0.5>",
    "ScaledTanh <alpha = 1.7, beta = 0.6>",
]


@pytest.mark.parametrize(("name", "opset"), EACH)
def test_simplify_keeps_them_and_knows_their_types(name, opset):
    before = model_of(name, opset)
    assert runtime_nodes(before)
    after = simplify(before)
    assert [n.op_type for n in runtime_nodes(after)] == [n.op_type for n in runtime_nodes(before)]
    assert not any(domain.startswith("onnxq") for domain in after.graph.opset_imports)
    assert all(v.dtype is not None for node in after.graph for v in node.outputs if v.name)
    assert_same_outputs(before, after)


@pytest.mark.parametrize(("name", "opset"), EACH)
def test_a_much_higher_opset(name, opset):
    before = model_of(name, opset)
    assert_same_outputs(before, simplify(before, OPSET_OF_BLOCKS))


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize(("name", "opset"), [each for each in EACH if each[1] in (12, 14)])
def test_such_a_model_is_quantized(tmp_path, name, opset, mode):
    before = model_of(name, opset)
    write(before, tmp_path / "m.onnx")
    shape = [size if isinstance(size, int) else 1 for size in before.graph.inputs[0].shape]
    data = [{"x": x.astype(np.float32)} for x in np.random.default_rng(0).standard_normal((10, *shape))]
    if mode == "static":
        result = onnxq.quantize_static(
            tmp_path / "m.onnx", tmp_path / "o.onnx", data, onnxq.QuantConfig(threads=1, verify="off")
        )
        assert len(result.plan.integer_nodes) >= 2
    else:
        result = onnxq.quantize_dynamic(tmp_path / "m.onnx", tmp_path / "o.onnx", None, data)
    assert result.quality.sqnr > 20
    kept = load(tmp_path / "o.onnx")
    assert [n.op_type for n in runtime_nodes(kept)] == [n.op_type for n in runtime_nodes(before)]


@pytest.mark.parametrize("operator", REMOVED)
def test_an_operator_that_a_higher_opset_lacks(operator):
    model = parse(between(IMAGES, f"n = {operator} (a)"), 9, check=False)
    with pytest.raises(ModelError, match=rf"opset 9 with {operator.split()[0]}, .*does not take the model"):
        simplify(model)


def test_what_the_runtime_does_not_know_either_is_not_valid(tmp_path):
    model = model_of("root mean square", 14)
    runtime_nodes(model)[0].op_type = "Refine"
    with pytest.raises(ModelError, match=r"not valid ONNX.*Refine"):
        write(model, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_another_fault_beside_them_is_found(tmp_path):
    model = model_of("root mean square", 14)
    model.graph[0].attributes["axis"] = ir.AttrInt64("axis", 1)  # MatMul has none
    with pytest.raises(ModelError, match="not valid ONNX"):
        write(model, tmp_path / "m.onnx")


def test_a_function_may_have_such_a_name():
    text = "g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"
    model = parse(text)
    model.graph[0].op_type = "Affine"
    assert runtime_nodes(model)
    body = ir.from_onnx_text('<ir_version: 8, opset_import: ["" : 13]> ' + text).graph
    model.functions[("", "Affine", "")] = ir.Function("", "Affine", graph=body, attributes=[])
    assert not runtime_nodes(model)
