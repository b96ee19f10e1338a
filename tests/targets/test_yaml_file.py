"""Targets in YAML files: what may be said, and how a mistake is answered."""

import onnx_ir as ir
import pytest
from flow import check_interface, check_reasons, quantize, run
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.core.errors import OnnxqError, TargetError
from onnxq.core.numerics import sqnr
from onnxq.core.plan import QuantSpec
from onnxq.pipelines.static import quantize_static
from onnxq.planner.number_formats import find_formats
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target
from onnxq.targets.target import Blocks, FloatInputs, OpRule, Output, Role, Storage

NET = """g (float[N,4,8,8] x) => (float[N,3] y) <float[8,4,3,3] w, float[8] b, float[3,8] m> {
    c = Conv (x, w, b) r = Relu (c) p = GlobalAveragePool (r) f = Flatten (p) y = Gemm <transB = 1> (f, m) }"""


@pytest.fixture
def target_of(tmp_path):
    def read(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return get_target(str(path))

    return read


def test_a_base_alone_is_the_base_under_another_name(target_of, tmp_path):
    target = target_of("base: qnn")
    assert target.name == str(tmp_path / "mine.yaml")
    assert target.rules == TARGETS["qnn"].rules
    assert get_target(target.name) is target, "asked for by the name that plans have"


def test_a_file_that_changed_is_read_again(target_of):
    assert target_of("base: qnn").activation.dtype == ir.DataType.UINT8
    assert (
        target_of("{base: qnn, activation: {dtype: uint16}, about: longer}").activation.dtype
        == ir.DataType.UINT16
    )


def test_formats_change_field_by_field(target_of):
    target = target_of("{base: tensorrt, weight: {reduce_bits: 4}, activation: {power_of_two: true}}")
    assert target.weight == QuantSpec(ir.DataType.INT8, symmetric=True, narrow_range=True, reduce_bits=4)
    assert target.activation == QuantSpec(ir.DataType.INT8, symmetric=True, power_of_two=True)
    formats = find_formats(target, QuantConfig())
    assert (formats.weight, formats.activation) == (target.weight, target.activation)


def test_another_type_is_one_that_may_be_asked_for(target_of):
    target = target_of("{base: tensorrt, weight: {dtype: uint8}, activation: {dtype: int16}}")
    formats = find_formats(target, QuantConfig())
    assert formats.weight.dtype == ir.DataType.UINT8
    assert formats.opset == 21


def test_rules_change_key_by_key(target_of):
    target = target_of(
        "{base: onnxruntime, rules: {Conv: {group_channels: 4}, Softmax: null, Erf: {role: link}}}"
    )
    assert target.rules["Conv"].group_channels == 4
    assert target.rules["Conv"].depthwise is Role.LINK
    assert "Softmax" not in target.rules
    assert target.rules["Erf"] == OpRule(Role.LINK)


def test_every_kind_of_field(target_of):
    target = target_of("""
base: onnxruntime
storage: reals
fused_clips: 1
notes: [one, two]
ends: {activation: {dtype: uint8, symmetric: false}, weight: {dtype: int8, symmetric: true}}
transparent: [MaxPool]
per_channel_types: [int8, uint8]
unpacked: {int4: int8, uint4: null}
blocks: {types: {int4: {dtype: int4, symmetric: true}}, sizes: [32], whole: true}
rules:
  Add: {role: residual, output: free, float_inputs: any, sums_with: [Conv]}
  Sigmoid: {output_range: [0, 1]}
  Gemm: {output: all-or-none, attributes: {alpha: 0.5}, depthwise: null, blocked: null}
""")
    assert target.storage is Storage.REALS
    assert (target.fused_clips, target.notes) == (1, ("one", "two"))
    assert target.first_last_formats.weight == QuantSpec(ir.DataType.INT8, symmetric=True)
    assert target.transparent == {"MaxPool"}
    assert target.per_channel_types == {ir.DataType.INT8, ir.DataType.UINT8}
    assert dict(target.weight_cast) == {ir.DataType.INT4: ir.DataType.INT8}
    assert (target.blocks.sizes, target.blocks.whole) == ({32}, True)
    add = target.rules["Add"]
    assert (add.role, add.output, add.float_inputs) == (Role.RESIDUAL, Output.FREE, FloatInputs.ANY)
    assert target.rules["Sigmoid"].output_range == (0.0, 1.0)
    assert target.rules["Gemm"].attributes == {"alpha": 0.5, "beta": 1.0}
    assert target.rules["Gemm"].blocked is None


def test_earlier_names_of_fields_mean_the_same(target_of):
    old = target_of(
        "{base: onnxruntime, unpacked: {uint4: null}, guarded: [Conv], parts_norms: false, about: old}"
    )
    new = target_of(
        "{base: onnxruntime, weight_cast: {uint4: null}, keep_float_weights: [Conv], unfuse_layernorm_add: false,"
        " about: old}"
    )
    assert old == new
    assert old.keep_float_weights == {"Conv"}


def test_without_a_base(target_of):
    target = target_of("""
activation: {dtype: uint8, symmetric: false}
weight: {dtype: int8, symmetric: true}
bias: int32
rules: {Conv: {role: anchor}}
blocks: {types: {int4: {dtype: int4, symmetric: true}}, sizes: [64]}
""")
    assert target.activation_types == {ir.DataType.UINT8}
    assert target.weight_types == {ir.DataType.INT8: QuantSpec(ir.DataType.INT8, symmetric=True)}
    assert isinstance(target.blocks, Blocks)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: abacus", "base: unknown target 'abacus'; valid: onnxruntime, "),
        ("{base: qnn, colour: red}", "colour: unknown field; valid: base, activation, weight, "),
        ("{base: qnn, name: mine}", "name: unknown field; valid: base, "),
        ("{base: qnn, weight: {bits: 4}}", "weight.bits: unknown field; valid: dtype, symmetric, "),
        ("{base: qnn, weight: {dtype: int7}}", "weight.dtype: expected one of int4, .*; got 'int7'"),
        ("{base: qnn, weight: int8}", "weight: expected fields, got 'int8'"),
        ("{base: qnn, bias: maybe}", "bias: expected one of int32, float, own; got 'maybe'"),
        (
            "{base: qnn, rules: {Conv: {role: boss}}}",
            "rules.Conv.role: expected one of anchor, link, residual",
        ),
        ("{base: qnn, rules: {Frob: {per_channel: true}}}", "rules.Frob.role: a value is needed here"),
        ("{base: qnn, rules: [Conv]}", r"rules: expected a mapping, got \['Conv'\]"),
        (
            "{base: qnn, rules: {Conv: {per_channel: 1}}}",
            "rules.Conv.per_channel: expected true or false, got 1",
        ),
        ("{base: qnn, fused_clips: true}", "fused_clips: expected a whole number, got True"),
        ("{base: qnn, fused_clips: 1.5}", "fused_clips: expected a whole number, got 1.5"),
        ("{base: qnn, transparent: MaxPool}", "transparent: expected a list, got 'MaxPool'"),
        ("{base: qnn, rules: {Conv: {output_range: [0]}}}", r"output_range: expected 2 values, got \[0\]"),
        ("{base: qnn, rules: {Conv: {output_range: [0, x]}}}", "output_range: expected a number, got 'x'"),
        *(
            (
                f"{{base: qnn, rules: {{Conv: {{output_range: {wrong}}}}}}}",
                r"rules\.Conv\.output_range: expected two",
            )
            for wrong in (
                "[1.0, 0.0]",
                "[0.0, 0.0]",
                "[.nan, 1.0]",
                "[0.0, .nan]",
                "[-.inf, 0.0]",
                "[0.0, .inf]",
            )
        ),
        *(
            (
                f"{{base: openvino, rules: {{Tanh: {{role: link, output_range: {wrong}}}}}}}",
                "two finite numbers",
            )
            for wrong in (
                "[-1.0e+39, 1.0]",
                "[-1.0, 1.0e+300]",
                "[0.0, 1.0e-60]",
                "[0.5, 1.0]",
                "[-2.0, -1.0]",
            )
        ),
        ("{base: qnn, fused_clips: -1}", "fused_clips: expected at least 0, got -1"),
        ("{base: qnn, rules: {Conv: {channels: 0}}}", "rules.Conv.channels: expected at least 1, got 0"),
        (
            "{base: qnn, rules: {Conv: {group_channels: -4}}}",
            "rules.Conv.group_channels: expected at least 0",
        ),
        (
            "{base: qnn, blocks: {types: {int4: {dtype: int4, symmetric: true}}, sizes: [0]}}",
            "sizes: expected at least 1, got 0",
        ),
        ("{base: qnn, rules: {Conv: {attributes: {alpha: [1]}}}}", r"attributes.alpha: expected a number or"),
        ("{base: qnn, blocks: {types: {int3: {}}, sizes: [1]}}", "types.int3: expected one of int4, .*int3"),
        ("{base: qnn, weight: {reduce_bits: 8}}", "weight.reduce_bits: expected 0 to 6, got 8"),
        ("{base: qnn, activation: {axis: 1}}", "activation: axis and block_size follow from the operator"),
        ("{base: qnn, rules: {NoSuchOp: {role: link}}}", "rules.NoSuchOp: ONNX has no such operator"),
        ("weight: {dtype: int8, symmetric: true}", "activation: a value is needed here, or a base"),
        ("- base", r"expected lines like 'base: tensorrt', got a list"),
        ("", "activation: a value is needed here, or a base"),
        ("base: qnn\nrules: [", "line 2: not YAML: "),
    ],
)
def test_mistakes_name_the_file_the_field_and_what_is_valid(target_of, text, message):
    with pytest.raises(TargetError, match=message) as caught:
        target_of(text)
    assert "mine.yaml" in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(TargetError, match=r"cannot read the target in nowhere\.yaml: No such file"):
        get_target("nowhere.yaml")


def test_a_name_that_is_no_target_lists_those_that_are():
    with pytest.raises(
        TargetError, match=r"unknown target 'mine'; valid targets: onnxruntime, .*, or a \.yaml file"
    ):
        get_target("mine")


def test_a_model_is_quantized_for_it(target_of, tmp_path):
    target = target_of("{base: onnxruntime, weight: {reduce_bits: 3}, rules: {Gemm: null}}")
    flow = quantize(parse(NET), target.name)
    check_reasons(flow)
    check_interface(flow)
    assert "Gemm" in flow.floats
    stored = flow.int8.graph.initializers["w_quantized"].const_value.numpy()
    assert (stored.min(), stored.max()) >= (-16, 15)
    assert abs(stored.astype(int)).max() <= 16
    assert sqnr(run(flow.model, flow.feeds)[0], run(flow.int8, flow.feeds)[0]) > 15


def test_the_whole_flow_takes_it(target_of, tmp_path):
    target = target_of("{base: tensorrt, storage: reals}")
    model = tmp_path / "m.onnx"
    ir.save(parse(NET), model)
    result = quantize_static(
        model, tmp_path / "q.onnx", config=QuantConfig(target=target.name, method="minmax")
    )
    assert result.plan.target == target.name
    assert (tmp_path / "q.onnx").is_file()
    with pytest.raises(OnnxqError, match="colour"):
        target_of("{base: tensorrt, colour: red}")
