"""Nodes whose activations have more bits than those of the others: formats, conversions, shared parameters."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import check, quantize
from graphs import parse
from onnxruntime.quantization import CalibrationDataReader, QuantType
from onnxruntime.quantization import quantize as onnxruntime_quantize
from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, TargetError
from onnxq.core.overrides import written
from onnxq.graph.passes import simplify
from onnxq.graph.qdq.insert_qdq import insert_qdq
from onnxq.targets.lookup import get_target
from onnxq.verify import legality
from onnxq.verify.subject import Subject

U8, U16 = ir.DataType.UINT8, ir.DataType.UINT16

CHAIN = """g (float[N,4,6,6] x) => (float[N,4,6,6] y)
<float[4,4,1,1] w1, float[4] b1, float[4,4,1,1] w2, float[4] b2, float[4,4,1,1] w3>
{ a = Conv (x, w1, b1)  r = Relu (a)  b = Conv (r, w2, b2)  y = Conv (b, w3) }"""


def wide(*nodes):
    return [written(name, {"activation": "uint16"}) for name in nodes]


def read(flow):
    """(consumer, input index) -> (type, type that it is converted from) of activations."""
    groups = flow.plan.groups
    return {
        (point.consumer, point.input_index): (
            point.spec.dtype,
            point.converted_from and groups[point.converted_from].spec.dtype,
        )
        for point in flow.plan.points
        if not groups[point.group].constant
    }


def before(node, index):
    """The Q and DQ before an input, the nearest one first: (operator, type of the integers)."""
    found, value = [], node.inputs[index]
    while (maker := value.producer()) is not None and maker.op_type in ("QuantizeLinear", "DequantizeLinear"):
        found.append((maker.op_type[0], maker.inputs[2].dtype))
        value = maker.inputs[0]
    return found


def node_of(flow, name):
    return next(node for node in flow.int8.graph if node.name == name)


def test_a_node_reads_and_gives_its_type_and_its_neighbours_convert():
    flow = quantize(parse(CHAIN), "qnn", override=wide("Conv_b"))
    check(flow)
    assert read(flow) == {
        ("Conv_a", 0): (U8, None),
        ("Conv_b", 0): (U16, U8),
        ("Conv_y", 0): (U8, U16),
        ("", 0): (U8, None),
    }
    assert before(node_of(flow, "Conv_b"), 0) == [("D", U16), ("Q", U16), ("D", U8), ("Q", U8)]
    assert before(node_of(flow, "Conv_y"), 0) == [("D", U8), ("Q", U8), ("D", U16), ("Q", U16)]
    assert {point.spec.dtype for point in flow.plan.points if point.input_index == 1} == {ir.DataType.INT8}


def test_a_conversion_has_a_dequantize_of_its_own_and_its_readers_share_the_integers():
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z, float[N,4,6,6] u)
    <float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3, float[4,4,1,1] w4>
    { a = Conv (x, w1)  y = Conv (a, w2)  z = Conv (a, w3)  u = Conv (a, w4) }"""
    flow = quantize(parse(text), "qnn", override=wide("Conv_y", "Conv_z"))
    check(flow)
    y, z, u = (node_of(flow, f"Conv_{name}") for name in "yzu")
    assert before(u, 0) == [("D", U8), ("Q", U8)]
    assert before(y, 0) == before(z, 0) == [("D", U16), ("Q", U16), ("D", U8), ("Q", U8)]
    converted = y.inputs[0].producer().inputs[0]
    assert converted is z.inputs[0].producer().inputs[0]
    source = converted.producer().inputs[0]
    assert len(source.uses()) == 1


def test_an_input_of_the_model_is_quantized_in_both_types():
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y, float[N,4,6,6] z) <float[4,4,1,1] w1, float[4,4,1,1] w2>
    { y = Conv (x, w1)  z = Conv (x, w2) }"""
    flow = quantize(parse(text), "qnn", override=wide("Conv_y"))
    check(flow)
    assert before(node_of(flow, "Conv_y"), 0) == [("D", U16), ("Q", U16)]
    assert before(node_of(flow, "Conv_z"), 0) == [("D", U8), ("Q", U8)]


def test_the_bias_has_input_scale_times_weight_scale():
    flow = quantize(parse(CHAIN), "qnn", override=wide("Conv_b"))
    node = node_of(flow, "Conv_b")
    data, weight, bias = (value.producer() for value in node.inputs)
    assert bias.inputs[0].dtype == ir.DataType.INT32
    scales = [one.inputs[1].const_value.numpy() for one in (data, weight, bias)]
    np.testing.assert_array_equal(scales[2], scales[0] * scales[1])


MOVED = """g (float[N,4,6,6] x) => (float[N,2] y) <float[4,4,1,1] w1, float[36,2] w2>
{ a = Conv (x, w1)  m = MaxPool <kernel_shape = [2,2], strides = [2,2]> (a)  f = Flatten (m)  y = MatMul (f, w2) }"""


def test_what_only_moves_values_takes_the_type_in_which_they_are_written():
    flow = quantize(parse(MOVED), "qnn", override=wide("Conv_a"))
    check(flow)
    types = read(flow)
    assert types["MaxPool_m", 0] == types["Flatten_f", 0] == (U16, None)
    assert types["MatMul_y", 0] == (U8, U16)
    groups = {
        point.group for point in flow.plan.points if point.tensor in ("a", "m") and point.spec.dtype == U16
    }
    assert len(groups) == 1


def test_what_moves_values_may_be_named_itself():
    flow = quantize(parse(MOVED), "qnn", override=[*wide("Conv_a"), "MaxPool_m: activation=uint8"])
    check(flow)
    assert read(flow)["MaxPool_m", 0] == (U8, U16)


def test_constant_operands_have_the_type_of_the_others():
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w1, float[1,4,1,1] k>
    { a = Conv (x, w1)  t = Sigmoid (a)  s = Mul (t, k)  y = Softmax (s) }"""
    flow = quantize(parse(text), "qnn", override=wide("Mul_s"))
    check(flow)
    specs = {(p.consumer, p.input_index): p.spec.dtype for p in flow.plan.points}
    assert specs["Mul_s", 0] == specs["Mul_s", 1] == U16


def test_fixed_ranges_are_those_of_the_type():
    text = """g (float[N,4,6,6] x) => (float[N,4,6,6] y) <float[4,4,1,1] w1, float[4,4,1,1] w2>
    { a = Conv (x, w1)  t = Sigmoid (a)  y = Conv (t, w2) }"""
    flow = quantize(parse(text), "qnn", override=wide("Sigmoid_t"))
    check(flow)
    (point,) = (point for point in flow.plan.points if point.tensor == "t")
    scales = [flow.plan.params[name].scale for name in (point.group, point.converted_from)]
    np.testing.assert_allclose(scales, [1 / 256, 1 / 65536])


def test_narrower_nodes_among_wide_ones():
    flow = quantize(parse(CHAIN), "qnn", activation="uint16", override="Conv_b: activation=uint8")
    check(flow)
    assert read(flow)["Conv_b", 0] == (U8, U16)
    assert read(flow)["Conv_y", 0] == (U16, U8)


def test_all_nodes_by_override_are_the_same_as_the_option():
    model = parse(CHAIN)
    one, other = quantize(model, "qnn", override=wide("*")), quantize(model, "qnn", activation="uint16")
    assert [(p.tensor, p.consumer, p.spec) for p in one.plan.points] == [
        (p.tensor, p.consumer, p.spec) for p in other.plan.points
    ]


@pytest.mark.parametrize(
    ("target", "dtype", "valid"),
    [
        ("onnxruntime", "uint16", "int8, uint8"),
        ("snpe", "uint16", "uint8"),
        ("qnn", "int16", "uint16, uint8"),
    ],
)
def test_a_type_that_the_target_lacks_is_refused(target, dtype, valid):
    with pytest.raises(
        TargetError,
        match=f"{target} does not take {dtype} as activation type, which an override .*valid: {valid}",
    ):
        quantize(parse(CHAIN), target, override=f"Conv_b: activation={dtype}")


def test_a_type_that_does_not_exist_is_refused():
    with pytest.raises(
        ConfigError, match="activation: expected uint8, int8, uint16, int16, float8e4m3fn, got 'uint12'"
    ):
        QuantConfig(override="Conv_b: activation=uint12")


def test_below_opset_21_the_file_has_the_operators_of_onnx_runtime():
    flow = quantize(parse(CHAIN), "qnn", override=wide("Conv_b"))
    assert flow.int8.graph.opset_imports[""] == 21
    simple = simplify(parse(CHAIN), 13)
    model = insert_qdq(simple, flow.plan)
    assert model.graph.opset_imports[""] < 21
    domains = {
        node.inputs[2].dtype: node.domain
        for node in model.graph
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 2
    }
    assert domains == {U8: "", ir.DataType.INT8: "", U16: "com.microsoft"}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    verdict = legality.check(Subject("model.onnx", model, get_target("qnn")))
    assert not [one for one in verdict.findings if one.severity == "error"]


def test_widths_that_no_kernel_takes_are_told():
    flow = quantize(parse(CHAIN), "qnn", override=wide("Conv_b"))
    node = node_of(flow, "Conv_b")
    reader = node.inputs[0].producer()
    node.replace_input_with(0, reader.inputs[0].producer().inputs[0])
    (finding,) = (
        one
        for one in legality.check(Subject("m", flow.int8, get_target("qnn"))).findings
        if "bits" in one.message
    )
    assert finding.message == "it reads and gives activations of 8 and 16 bits."


class OneSample(CalibrationDataReader):
    def __init__(self, feeds):
        self.left = iter([feeds])

    def get_next(self):
        return next(self.left, None)


def test_conversions_are_those_of_onnx_runtimes_own_quantizer(tmp_path):
    text = """g (float[1,4,6,6] x) => (float[1,4,6,6] y)
    <float[4,4,1,1] w1, float[4,4,1,1] w2, float[4,4,1,1] w3>
    { a = Conv (x, w1)  b = Conv (a, w2)  c = Conv (b, w3)  y = Add (c, a) }"""
    flow = quantize(parse(text), "qnn", override=wide("Conv_b", "Conv_c"))
    paths = [tmp_path / name for name in ("float.onnx", "theirs.onnx")]
    ir.save(flow.simple, paths[0])
    config = get_qnn_qdq_config(
        paths[0],
        OneSample(flow.feeds),
        weight_type=QuantType.QInt8,
        init_overrides={"b": [{"quant_type": QuantType.QUInt16}]},  # widens who gives it and who reads it
    )
    onnxruntime_quantize(str(paths[0]), str(paths[1]), config)
    theirs = {node.name: node for node in ir.load(paths[1]).graph}
    for name, inputs in {"Conv_a": [0], "Conv_b": [0], "Conv_c": [0], "Add_y": [0, 1]}.items():
        for index in inputs:
            assert before(node_of(flow, name), index) == before(theirs[name], index), (name, index)
