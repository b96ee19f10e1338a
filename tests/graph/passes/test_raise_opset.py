import numpy as np
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse

from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET_OF_BLOCKS
from onnxq.graph.passes import opset, simplify

CLASSIC = """g (float[N,3,8,8] x) => (float[N,10] y)
<float[4,3,3,3] w, float[4] s, float[4] t, float[4] u, float[4] var, float[10,36] v, float[10] b> {
    c = Conv(x, w)
    n = BatchNormalization(c, s, t, u, var)
    r = Clip <min=0.0, max=6.0> (n)
    p = Pad <pads=[0,0,1,0,0,0,0,1]> (r)
    m = MaxPool <kernel_shape=[2,2], strides=[2,2]> (p)
    d = Dropout(m)
    f = Flatten(d)
    k = Gemm <transB=1> (f, v, b)
    q = Unsqueeze <axes=[0]> (k)
    o = Squeeze <axes=[0]> (q)
    y = Softmax <axis=1> (o)
}"""


@pytest.mark.parametrize("opset", [7, 8, 9, 10])
def test_an_old_model_becomes_13_and_computes_the_same(opset):
    before = parse(CLASSIC, opset=opset, ir_version=4)
    after = simplify(before)
    assert after.graph.opset_imports[""] == 13
    assert after.ir_version >= 7
    assert op_counts(after)["Conv"] == 1
    assert "BatchNormalization" not in op_counts(after)
    assert_same_outputs(before, after)


@pytest.mark.parametrize("opset", [7, 10, 13, 18, 20, 21, 22])
def test_a_format_of_later_opsets_raises_to_them(opset):
    text = CLASSIC if opset < 11 else "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
    before = parse(text, opset=opset, ir_version=4 if opset < 11 else 8)
    after = simplify(before, OPSET_OF_BLOCKS)
    assert after.graph.opset_imports[""] == max(opset, 21)
    assert after.ir_version >= 10
    assert_same_outputs(before, after)


CHANGED = {
    "axes became an input": (13, "float[N,1,6] y", "y = ReduceMean <axes=[1]> (x)"),
    "all axes": (13, "float[1,1,1] y", "y = ReduceL2 (x)"),
    "number of parts": (17, "float[N,4,3] y", "a, b = Split <axis=2> (x) y = Sub (a, b)"),
    "axes of padding": (13, "float[N,4,9] y", "p = Constant <value_ints=[0,0,1,0,0,2]> () y = Pad (x, p)"),
    "axis became an input": (17, "float[N,4,6,2] y", "u = Unsqueeze (x, minus) y = DFT <axis=2> (u)"),
    "ceil mode": (13, "float[N,4,3] y", "y = AveragePool <kernel_shape=[3], strides=[2], ceil_mode=1> (x)"),
    "interpolation": (
        13,
        "float[N,4,9] y",
        'r = Constant <value_floats=[1.0, 1.0, 1.5]> () y = Resize <mode="linear"> (x, , r)',
    ),
    "dequantization": (13, "float[N,4,6] y", "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)"),
}


@pytest.mark.parametrize("what", CHANGED)
def test_operators_that_changed_between_13_and_21_compute_the_same(what):
    opset, output, body = CHANGED[what]
    given = "float s = {0.1}, uint8 z = {12}, int64[1] minus = {-1}"
    before = parse(f"g (float[N,4,6] x) => ({output}) <{given}> {{ {body} }}", opset=opset)
    after = simplify(before, OPSET_OF_BLOCKS)
    assert after.graph.opset_imports[""] == 21
    assert_same_outputs(before, after)


def test_group_normalization_with_a_scale_a_group_is_refused_where_21_is_needed():
    before = parse(
        "g (float[N,4,6] x) => (float[N,4,6] y) <float[2] s, float[2] t> {"
        " y = GroupNormalization <num_groups=2> (x, s, t) }",
        opset=18,
        check=False,
    )
    assert simplify(before).graph.opset_imports[""] == 18
    with pytest.raises(ModelError, match=r"GroupNormalization of opset 18 .* 21, which int4"):
        simplify(before, OPSET_OF_BLOCKS)


@pytest.mark.parametrize("opset", [13, 15, 17, 21])
def test_new_enough_is_left_as_it_is(opset):
    before = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=opset, ir_version=10)
    after = simplify(before)
    assert after.graph.opset_imports[""] == opset
    assert after.ir_version == 10


def test_ir_version_3_lists_weights_as_inputs():
    before = parse(
        "g (float[N,3] x) => (float[N,4] y) <float[3,4] w> { y = MatMul(x, w) }", opset=9, ir_version=4
    )
    before.ir_version = 3
    before.graph.inputs.insert(0, before.graph.initializers["w"])
    after = simplify(before)
    assert [v.name for v in after.graph.inputs] == ["x"]
    assert_same_outputs(before, after)


def test_newer_models_with_weights_as_inputs_get_a_warning(caplog):
    before = parse("g (float[N,3] x) => (float[N,4] y) <float[3,4] w> { y = MatMul(x, w) }")
    before.graph.inputs.append(before.graph.initializers["w"])
    after = simplify(before)
    assert [v.name for v in after.graph.inputs] == ["x"]
    assert "default values (w" in caplog.text


def test_node_and_tensor_names_survive():
    before = parse(CLASSIC, opset=9, ir_version=4)
    for node in before.graph:
        node.name = f"node_{node.op_type}"
    after = simplify(before)
    names = {n.op_type: (n.name, n.outputs[0].name) for n in after.graph}
    assert names["Conv"] == ("node_Conv", "n")
    assert names["Gemm"][0] == "node_Gemm"
    assert after.graph[0].inputs[1].name == "w"


def test_bodies_are_raised_too():
    before = parse(
        """g (float[N,3] x, int64 n, bool k) => (float[N,3] y) {
            c = Constant <value = bool {1}> ()
            l = Loop (n, c, x) <body = b (int64 i, bool ci, float[N,3] a) => (bool co, float[N,3] o) {
                co = Identity(ci)
                q = Unsqueeze <axes=[0]> (a)
                s = Squeeze <axes=[0]> (q)
                z = Softmax <axis=1> (s)
                o = Add(z, x)
            }>
            y = If (k) <
                then_branch = t () => (float[N,3] u) { u = Clip <min=0.0, max=1.0> (l) },
                else_branch = e () => (float[N,3] v) { v = Clip <min=-1.0, max=0.0> (x) }>
        }""",
        opset=9,
        ir_version=6,
    )
    after = simplify(before)
    for choice in (True, False):
        assert_same_outputs(before, after, feeds_for(before, n=np.array(3), k=np.array(choice)))


def test_large_weights_stay_behind_during_the_conversion(monkeypatch):
    sizes = []
    convert = opset.onnx.version_converter.convert_version
    monkeypatch.setattr(
        opset.onnx.version_converter,
        "convert_version",
        lambda proto, version: sizes.append(proto.ByteSize()) or convert(proto, version),
    )
    before = parse(
        "g (float[N,100] x) => (float[N,100] y) <float[100,100] w, float[100] b> { y = Gemm(x, w, b) }",
        opset=9,
    )
    after = simplify(before)
    assert sizes[0] < 2000
    assert_same_outputs(before, after)


def test_what_the_converter_cannot_do_is_an_error_that_says_so():
    before = parse(
        """g (float[N,2,4] x) => (float[N,2,4] y) <float[2,4] s, float[2,4] t, float[2,4] u, float[2,4] var> {
            y = BatchNormalization <spatial=0> (x, s, t, u, var)
        }""",
        opset=8,
        ir_version=4,
    )
    with pytest.raises(ModelError, match=r"uses opset 8; .* needs 13, .*spatial"):
        simplify(before)


def test_operators_that_the_converter_mistranslates_are_refused():
    before = parse("g (float[N,4,4] x) => (float[N,4,4] y) { y = Hardmax(x) }", opset=12)
    with pytest.raises(ModelError, match="Hardmax of opset 12 means something else"):
        simplify(before)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", ["{1,1,2,3}", "{1,1,1.5,2.5}", "{1,1,0.5,0.5}", "{1,1,0.6,0.4}"])
@pytest.mark.parametrize("holder", ["initializer", "Constant"])
def test_a_resize_of_opset_10_keeps_its_coordinates(mode, scales, holder):
    values = f"float[4] {{ {', '.join(v if '.' in v else v + '.0' for v in scales[1:-1].split(','))} }}"
    tensor = f"<{values.replace('float[4]', 'float[4] s =')}>" if holder == "initializer" else ""
    node = "" if holder == "initializer" else f"s = Constant <value = {values}> ()"
    before = parse(
        f'g (float[N,2,5,5] x) => (float[N,2,h,w] y) {tensor} {{ {node} y = Resize <mode="{mode}"> (x, s) }}',
        opset=10,
    )
    after = simplify(before)
    assert op_counts(after) == {"Resize": 1}
    assert_same_outputs(before, after)


def test_a_resize_that_shrinks_and_stretches_is_refused():
    before = parse(
        """g (float[N,2,5,5] x) => (float[N,2,h,w] y) <float[4] s = {1.0, 1.0, 2.0, 0.5}> {
            y = Resize <mode="nearest"> (x, s)
        }""",
        opset=10,
    )
    with pytest.raises(ModelError, match="shrinks one axis"):
        simplify(before)


def test_upsample_becomes_resize():
    before = parse(
        """g (float[N,2,5,5] x) => (float[N,2,h,w] y) <float[4] s = {1.0, 1.0, 2.0, 3.0}> {
            y = Upsample <mode="linear"> (x, s)
        }""",
        opset=9,
    )
    after = simplify(before)
    assert op_counts(after) == {"Resize": 1}
    assert_same_outputs(before, after)


def test_the_alias_of_the_standard_domain():
    before = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }", opset=9)
    before.graph.opset_imports["ai.onnx"] = before.graph.opset_imports.pop("")
    after = simplify(before)
    assert dict(after.graph.opset_imports) == {"": 13}
