"""Dynamic quantization: what each operator becomes, what ONNX Runtime makes of it, and how close that is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import onnxq as onnxq_command
from graphs import feeds_for, parse

import onnxq
from calibrators.session import open_session, saturates
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError, ModelError, TargetError
from onnxq.core.numerics import sqnr
from onnxq.graph.files import load
from onnxq.graph.nodes import all_nodes

MATMUL = """g (float[N,M,64] x) => (float[N,M,48] y) <float[64,48] w, float[48] b>
{ p = MatMul(x, w)  y = Add(p, b) }"""

SHARED = """g (float[N,M,64] x) => (float[N,M,48] q, float[N,M,48] k) <float[64,48] w, float[64,48] v>
{ q = MatMul(x, w)  k = MatMul(x, v) }"""

ATTENTION = """g (float[N,M,64] x) => (float[N,M,M] y) <float[64,64] w>
{ q = MatMul(x, w)  t = Transpose<perm=[0,2,1]>(x)  y = MatMul(q, t) }"""

CONV = """g (float[N,4,12,12] x) => (float[N,8,6,6] y) <float[8,2,3,3] w, float[8] b>
{ y = Conv<group=2, pads=[1,1,1,1], strides=[2,2]>(x, w, b) }"""

EMBEDDING = """g (int64[N,M] i) => (float[N,M,64] y) <float[512,64] table>
{ y = Gather(table, i) }"""

LSTM = """g (float[M,N,32] x) => (float[M,D,N,16] y) <float[D,64,32] w, float[D,64,16] r, float[D,128] b>
{ y = LSTM<hidden_size=16, direction="KIND">(x, w, r, b) }"""

GRU = """g (float[M,N,32] x) => (float[M,1,N,16] y) <float[1,48,32] w, float[1,48,16] r>
{ y = GRU<hidden_size=16>(x, w, r) }"""

GEMM = """g (float[N,64] x) => (float[N,48] y) <float[48,64] w, float[1,48] c>
{ y = Gemm<transB=1>(x, w, c) }"""

BODY = """g (float[N,64] x, bool flag) => (float[N,48] y) <float[64,48] w>
{ y = If(flag) <then_branch = t () => (float[N,48] a) { a = MatMul(x, w) },
                else_branch = e () => (float[N,48] d) { m = MatMul(x, w)  d = Neg(m) }> }"""

LOOP = """g (float[N,64] x, int64 n) => (float[N,64] y) <float[64,64] w, bool yes = {1}>
{ y, last = Loop(n, yes, x, w) <body = l (int64 i, bool c, float[N,64] s, float[64,64] v)
    => (bool o, float[N,64] t, float[64,64] u) { o = Identity(c)  m = MatMul(s, v)  t = Tanh(m)  u = Identity(v) }> }"""

DIRECTIONS = {"forward": "1", "bidirectional": "2"}


def lstm(kind: str = "forward") -> str:
    return LSTM.replace("KIND", kind).replace("D", DIRECTIONS[kind])


class Made:
    """A model before and after."""

    def __init__(self, folder: Path, text: str, given: dict | None = None, **options: object) -> None:
        self.float, self.output = folder / "float.onnx", folder / "dynamic.onnx"
        model = parse(text, **(given or {}))
        model.graph.opset_imports.setdefault("com.microsoft", 1)
        ir.save(model, self.float)
        self.result = onnxq.quantize_dynamic(self.float, self.output, QuantConfig(mode="dynamic", **options))
        self.model = load(self.output)

    @property
    def operators(self) -> Counter[str]:
        return Counter(node.op_type for node in all_nodes(self.model))

    def fused(self, folder: Path) -> Counter[str]:
        open_session(self.output, threads=1, save_fused=folder / "fused.onnx")
        return Counter(node.op_type for node in onnx.load(folder / "fused.onnx").graph.node)

    def closeness(self, **given: object) -> float:
        """SQNR in dB of the worst output, on random inputs."""
        feeds = feeds_for(load(self.float), **given)
        pairs = zip(*(open_session(path).run(None, feeds) for path in (self.float, self.output)), strict=True)
        return min(sqnr(one, other) for one, other in pairs)


@pytest.fixture
def make(tmp_path):
    return lambda text, given=None, **options: Made(tmp_path, text, given, **options)


# --- integers, for ONNX Runtime -------------------------------------------------------------------


def test_a_matmul_with_its_bias_becomes_one_kernel(make, tmp_path):
    made = make(MATMUL)
    assert made.operators["MatMulInteger"] == 1
    assert made.fused(tmp_path) == {"DynamicQuantizeMatMul": 1}
    assert made.closeness() > 35
    assert list(made.result.plan.integer_nodes.values()) == ["MatMul"]


def test_weights_are_int8_with_a_scale_a_column(make):
    made = make(MATMUL)
    weights = {n: v for n, v in made.model.graph.initializers.items() if n.startswith("w")}
    assert {str(v.dtype): list(v.shape) for v in weights.values()} == {"INT8": [64, 48], "FLOAT": [48]}
    integers = next(v.const_value.numpy() for v in weights.values() if v.dtype == ir.DataType.INT8)
    assert np.abs(integers.astype(int)).max() == 127


def test_one_scale_a_tensor_if_asked_for(make):
    made = make(MATMUL, per_tensor=True)
    assert [list(v.shape) for n, v in made.model.graph.initializers.items() if n.startswith("w_scale")] == [
        []
    ]
    assert made.closeness() > 30


def test_without_vnni_weights_have_seven_bits(make):
    made = make(MATMUL, target="onnxruntime-avx2")
    found = [
        v.const_value.numpy() for v in made.model.graph.initializers.values() if v.dtype == ir.DataType.INT8
    ]
    assert [int(np.abs(array.astype(int)).max()) for array in found] in ([63], [64])


def test_data_that_several_read_is_quantized_once(make, tmp_path):
    made = make(SHARED)
    assert made.operators["DynamicQuantizeLinear"] == 1
    assert made.fused(tmp_path) == {"DynamicQuantizeLinear": 1, "MatMulIntegerToFloat": 2}
    assert made.closeness() > 35


@pytest.mark.parametrize("flag", ["1", "2"])  # runtimes take any number but 0 for true
def test_a_gemm_that_transposes_its_weight(make, tmp_path, flag):
    made = make(GEMM.replace("transB=1", f"transB={flag}"))
    assert made.fused(tmp_path) == {"DynamicQuantizeMatMul": 1}
    assert made.closeness() > 35


def test_attention_stays_float_unless_named(make):
    reasons = [node.reason for node in make(ATTENTION).result.plan.float_nodes.values()]
    assert len(reasons) == 1
    assert "two computed tensors" in reasons[0]


def test_attention_is_quantized_by_name(make):
    made = make(ATTENTION, include=("*",))
    assert made.operators["MatMulInteger"] == 2
    assert made.closeness() > 30
    assert make(ATTENTION, include=("op:MatMul",)).operators["MatMulInteger"] == 1


def test_conv_only_if_included(make):
    with pytest.raises(ModelError, match="--include op:Conv"):
        make(CONV)
    made = make(CONV, include=("op:Conv",))
    assert made.operators["ConvInteger"] == 1
    assert made.closeness() > 35


def test_conv_reads_what_every_onnx_runtime_takes(make):
    """Older versions, such as 1.20, have ConvInteger for uint8 only."""
    made = make(CONV, include=("op:Conv",))
    (node,) = [node for node in made.model.graph if node.op_type == "ConvInteger"]
    _, weight, zero, weight_zero = node.inputs
    assert [value.dtype for value in (weight, weight_zero)] == [ir.DataType.UINT8] * 2
    assert zero.producer().op_type == "DynamicQuantizeLinear"
    assert weight_zero.const_value.numpy() == 128
    assert "uint8 weights" in str(next(iter(made.result.plan.stored_weights.values())))


@pytest.mark.parametrize("text", ["float[N,4,12] x", "float[N,4,12,12] x"])
def test_padding_is_zero_wherever_the_zero_point_lies(make, text):
    """Data far from zero: were the padding not its zero point, the edges would be wrong."""
    axes = text.count("12")
    kernel, size = ",".join(["3"] * axes), ",".join(["12"] * axes)
    made = make(
        f"g ({text}) => (float[N,8,{size}] y) <float[8,4,{kernel}] w> "
        f"{{ y = Conv<pads=[{','.join(['1'] * 2 * axes)}]>(x, w) }}",
        include=("op:Conv",),
    )
    shape = [2, 4] + [12] * axes
    assert made.closeness(x=np.random.default_rng(0).uniform(-3, -2, shape).astype(np.float32)) > 35


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("per_tensor", [False, True])
def test_an_lstm_runs_in_the_integer_kernel(make, tmp_path, kind, per_tensor):
    made = make(lstm(kind), per_tensor=per_tensor)
    assert made.fused(tmp_path) == {"DynamicQuantizeLSTM": 1}
    assert made.closeness() > 25


def test_an_lstm_keeps_its_state(make):
    text = """g (float[M,N,32] x, float[1,N,16] h, float[1,N,16] c) =>
    (float[1,N,16] hn, float[1,N,16] cn) <float[1,64,32] w, float[1,64,16] r, float[1,128] b>
    { "", hn, cn = LSTM<hidden_size=16>(x, w, r, b, "", h, c) }"""
    assert make(text.replace('""', "")).closeness() > 25


def test_a_gru_is_stored_in_int8_and_unpacked_at_loading(make, tmp_path):
    made = make(GRU)
    assert made.fused(tmp_path) == {"GRU": 1}
    assert made.closeness() > 35
    assert {v.dtype for v in made.model.graph.initializers.values()} == {ir.DataType.INT8, ir.DataType.FLOAT}
    assert made.result.plan.integer_nodes == {}, "it does not count as quantized"
    (node,) = made.result.plan.float_nodes.values()
    assert node.reason == "only its weights are int8: there is no integer kernel"


FUSED = """g (float[N,6,32] x{inputs}) => (float[N,6,32] y) <float[32,96] w{constants}>
{{ y = com.microsoft.Attention<num_heads = 4{attributes}>(x, w{rest}) }}"""


def fused(inputs="", constants=", float[96] b", attributes="", rest=", b"):
    return FUSED.format(inputs=inputs, constants=constants, attributes=attributes, rest=rest)


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_fused_attention_becomes_the_integer_kernel(make, tmp_path, mask, per_tensor):
    text = fused(inputs=", int32[N,6] m", rest=", b, m") if mask else fused()
    made = make(text, {"check": False}, per_tensor=per_tensor)
    assert made.fused(tmp_path) == {"DynamicQuantizeLinear": 1, "QAttention": 1}
    feeds = {"m": np.tile([1, 1, 1, 1, 0, 0], (2, 1)).astype(np.int32)} if mask else {}
    assert made.closeness(**feeds) > 30
    assert made.result.verdicts[0].counts["QAttention"] == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (fused(rest="", constants=""), "are left out, or computed at run time"),
        (fused(inputs=", float[32,96] v").replace("(x, w", "(x, v"), "or computed at run time"),
        (fused(attributes=", qkv_hidden_sizes = [32, 32, 32]"), "does not support: qkv_hidden"),
        (fused(inputs=", float[N,4,6,6] e", rest=', b, "", "", e'), "inputs after the mask and the past"),
    ],
)
def test_fused_attention_that_the_integer_kernel_does_not_take(make, text, reason):
    with pytest.raises(ModelError, match=reason):
        make(text.replace('""', ""), {"check": False})


def test_fused_attention_in_other_forms_is_told_of(make):
    with pytest.raises(ModelError, match="but not float16"):
        make(fused(), {"check": False}, weight="float16")


def test_only_the_rows_that_are_looked_up_become_float(make, tmp_path):
    made = make(EMBEDDING, given={"table": np.random.default_rng(0).standard_normal((512, 64))})
    assert made.fused(tmp_path)["Gather"] == 2
    assert made.closeness(i=np.array([[0, 5, 511], [7, 7, 1]])) > 40
    assert made.result.int8_bytes < 0.35 * made.result.float_bytes


@pytest.mark.skipif(saturates(), reason="kernels in bodies of control flow saturate on this processor")
def test_bodies_of_control_flow_are_quantized(make):
    made = make(BODY)
    assert made.operators["MatMulInteger"] == 2
    assert len(made.result.plan.integer_nodes) == 2
    for flag in (True, False):
        assert made.closeness(flag=np.array(flag)) > 35
    assert sum(v.dtype == ir.DataType.INT8 for v in made.model.graph.initializers.values()) == 1


# --- other forms ----------------------------------------------------------------------------------


def test_openvino_gets_stored_weights(make):
    made = make(MATMUL, target="openvino")
    assert made.operators == {"Cast": 1, "Mul": 1, "MatMul": 1, "Add": 1}
    assert made.closeness() > 35


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_float16_halves_the_file_for_every_target(make, tmp_path, target):
    made = make(MATMUL, target=target, weight="float16")
    assert made.fused(tmp_path)["Cast"] == 0
    assert made.closeness() > 60
    assert {v.dtype for v in made.model.graph.initializers.values()} == {
        ir.DataType.FLOAT16,
        ir.DataType.FLOAT,
    }


def test_weights_that_no_float16_holds_stay_float(make):
    with pytest.raises(ModelError, match="beyond 65504"):
        make(MATMUL, given={"w": 1e5}, weight="float16")


def test_float16_tables_are_unpacked_row_by_row(make):
    made = make(EMBEDDING, weight="float16")
    assert made.operators == {"Gather": 1, "Cast": 1}


@pytest.mark.parametrize("target", ["tensorrt", "qnn"])
def test_targets_without_it_say_so(make, target):
    with pytest.raises(TargetError, match=f"{target} needs the ranges.*--mode static.*onnxruntime"):
        make(MATMUL, target=target)


# --- products whose first operand is the constant -------------------------------------------------

LEFT = "g (float[N,64,M] x) => (float[N,48,M] y) <float[48,64] w> { y = MatMul(w, x) }"

LEFT_GEMM = "g (float[64,M] x) => (float[48,M] y) <float[ROWS] w, float[1] b> { y = Gemm<transA=T>(w, x, b) }"


FORMS = [{}, {"target": "openvino"}, {"weight": "float16"}]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "text",
    [
        LEFT,
        LEFT.replace("N,", ""),
        LEFT_GEMM.replace("ROWS", "48,64").replace("T", "0", 1),
        LEFT_GEMM.replace("ROWS", "64,48").replace("=T", "=1"),
        LEFT_GEMM.replace("ROWS", "64,48").replace("=T", "=2"),
    ],
)
def test_a_constant_first_operand_is_stored_and_the_product_runs_in_float(make, tmp_path, text, form):
    made = make(text, **form)
    counted = {node for node in made.result.plan.integer_nodes if "weight" not in form}
    assert not counted, "it runs in float, whatever its weights are"
    assert "DynamicQuantizeLinear" not in made.operators
    assert "Cast" not in made.fused(tmp_path)  # unpacked when the model is loaded
    stored = {value.dtype for value in made.model.graph.initializers.values() if value.shape.numpy() != (1,)}
    assert ir.DataType.INT8 in stored or stored == {ir.DataType.FLOAT16}
    assert made.closeness() > 35


def test_its_scales_lie_along_its_rows(make):
    made = make(LEFT, {"w": np.geomspace(1, 1e4, 48)[:, None] * np.linspace(-1, 1, 64)})
    assert next(v for n, v in made.model.graph.initializers.items() if "scale" in n).shape == [48, 1]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("count", [32, 2048])
@pytest.mark.parametrize("product", ["f, p", "p, f"])
def test_frequencies_that_positions_are_multiplied_with_keep_all_digits(make, product, count, form):
    """An outer product has no sum in which rounding errors could cancel, and angles need all digits."""
    first = product == "f, p"
    shape = (1, count, 1) if first else (1, count)
    text = f"""g (float[N,64] i) => (float[A,B,C] z, float[N,48] y)
    <float[{",".join(map(str, shape))}] f, int64[1] axis, float[64,48] w>
    {{ p = Unsqueeze(i, axis)  a = MatMul({product})  z = Neg(a)  y = MatMul(i, w) }}"""
    given = {"f": np.geomspace(1, 1e-4, count).reshape(shape), "axis": [1 if first else 2]}
    made = make(text, given, **form)
    assert "all their digits" in made.result.plan.float_nodes["MatMul_a"].reason
    positions = np.arange(64, dtype=np.float32) + np.array([[300], [900]], np.float32)
    outputs = [open_session(path).run(["z"], {"i": positions})[0] for path in (made.float, made.output)]
    np.testing.assert_array_equal(*outputs)


# --- stacks of one matrix -------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("weight", ["1,64,48", "1,1,64,48"])
@pytest.mark.parametrize("data", ["N,M,64", "2,N,M,64", "M,64"])
def test_a_stack_of_one_matrix_is_quantized_like_the_matrix(make, data, weight, form):
    out = ",".join("ABCD"[: max(data.count(","), weight.count(",")) + 1])
    text = f"g (float[{data}] x) => (float[{out}] y) <float[{weight}] w> {{ y = MatMul(x, w) }}"
    given = {"w": np.geomspace(1, 1e3, 48) * np.random.default_rng(0).standard_normal((64, 48))}
    made = make(text, given, **form)
    assert set(made.result.plan.integer_nodes.values()) == {"MatMul"}
    scales = [v.const_value.size for n, v in made.model.graph.initializers.items() if n.endswith("_scale")]
    assert scales == ([] if "weight" in form else [48])
    assert made.closeness() > 35


# --- what stays float -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "given", "reason"),
    [
        (MATMUL, {"w": np.inf}, "NaN or infinite"),
        (MATMUL.replace("64", "4"), None, "less than 1024 weights"),
        (SHARED.replace("N,M,64", "64").replace("N,M,48", "48"), None, "a vector"),
        (GEMM.replace("transB=1", "transA=1, transB=1").replace("N,64", "64,N"), None, "transA is 1"),
        (EMBEDDING.replace("512", "8"), None, "little to save"),
        (MATMUL.replace("[64,48] w", "[M,64,48] w").replace("M,", "3,"), None, "3 axes"),
        (MATMUL.replace("64", "70000").replace("48", "1"), None, "32 bits"),
    ],
)
def test_reasons(make, text, given, reason):
    with pytest.raises(ModelError, match=reason):
        make(text, given)


def test_exclude_chooses_by_operator_and_by_name(make):
    assert len(make(SHARED).result.plan.integer_nodes) == 2
    first = next(iter(make(SHARED).result.plan.integer_nodes))
    assert list(make(SHARED, exclude=(first,)).result.plan.float_nodes) == [first]
    with pytest.raises(ModelError, match="excluded by 'op:MatMul'"):
        make(SHARED, exclude=("op:MatMul",))


# --- options, data, files -------------------------------------------------------------------------


def test_options_of_static_mode_are_refused():
    with pytest.raises(ConfigError, match="static only: method, goal"):
        QuantConfig(mode="dynamic", method="entropy", goal="sqnr>=20")
    with pytest.raises(ConfigError, match=r"takes equalize or none \(correct\), got bias$"):
        onnxq.quantize_dynamic("in.onnx", "out.onnx", QuantConfig(correct=("bias", "equalize")))


def test_options_that_say_what_is_so_anyway_are_not():
    assert QuantConfig(**{**QuantConfig().model_dump(), "mode": "dynamic"}).mode == "dynamic"


@pytest.mark.parametrize("weight", ["uint8", "int4"])
def test_weight_types_of_static_mode_are_refused(weight):
    with pytest.raises(ConfigError, match="int8 or float16"):
        QuantConfig(mode="dynamic", weight=weight)
    with pytest.raises(ConfigError, match="mode dynamic"):
        QuantConfig(weight="float16")


def test_of_given_data_every_fifth_sample_is_held_out_to_judge_by(make, tmp_path):
    given = {"x": np.random.default_rng(0).standard_normal((12, 3, 64)).astype(np.float32)}
    np.savez(tmp_path / "data.npz", **given)
    made = make(MATMUL, data=tmp_path / "data.npz")
    assert (made.result.judged_on, made.result.quality.samples) == ("held-out samples", 2)
    other = made.output.read_bytes()
    assert make(MATMUL).result.judged_on == "synthetic inputs"
    assert made.output.read_bytes() == other  # there was nothing to fit


PICKY = """g (float[N,64] x, int64[2] shape) => (float[O,48] y) <float[64,48] w>
{ r = Reshape(x, shape)  y = MatMul(r, w) }"""


def test_inputs_that_cannot_be_synthesized_are_no_obstacle(make, tmp_path):
    made = make(PICKY)
    assert made.result.quality is None
    assert any("was not measured" in warning for warning in made.result.warnings)
    assert made.closeness(shape=np.array([2, 64])) > 35


UNGUESSED = {
    "a sequence": "seq(float[A,60]) x, int64 i) => (float[A,60] y) <float[60,60] w> { h = SequenceAt(x, i)  y = MatMul(h, w) }",
    "no size runs": "float[N,L] x) => (float[A,60] y) <float[60,60] w> { h = Reshape(x, s)  y = MatMul(h, w) }",
    "text": "string[A,60] x) => (float[A,60] y) <float[60,60] w> { h = Cast<to=1>(x)  y = MatMul(h, w) }",
}


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", UNGUESSED)
def test_a_model_whose_inputs_cannot_be_guessed_is_written_with_a_warning(tmp_path, name, form):
    model = parse(f"g ({UNGUESSED[name]}".replace("<float", "<int64[2] s, float", 1), s=[-1, 60])
    ir.save(model, tmp_path / "float.onnx")
    config = QuantConfig(mode="dynamic", **form)
    result = onnxq.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "out.onnx", config)
    assert result.quality is None
    assert result.speed is None
    assert any("was not measured" in warning for warning in result.warnings)
    operators = Counter(node.op_type for node in load(tmp_path / "out.onnx").graph)
    assert operators["MatMulInteger"] or operators["Cast"]


def test_bad_data_leaves_nothing_behind(make, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros((4, 3, 7), np.float32))
    with pytest.raises(CalibrationError):
        make(MATMUL, data=tmp_path / "data.npz")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.npz", "float.onnx"]


def test_a_quantized_model_is_refused(make, tmp_path):
    made = make(MATMUL)
    with pytest.raises(ModelError, match="already quantized"):
        onnxq.quantize_dynamic(made.output, tmp_path / "again.onnx")


def test_there_is_no_table(make):
    with pytest.raises(ConfigError, match="no calibration table"):
        _ = make(MATMUL).result.table


def test_a_report(make, tmp_path):
    make(MATMUL, report=tmp_path / "report.html")
    assert "dynamic" in (tmp_path / "report.html").read_text("utf-8")


def test_the_same_again(make):
    assert make(SHARED).output.read_bytes() == make(SHARED).output.read_bytes()


def test_static_and_dynamic_have_functions_of_their_own(tmp_path):
    with pytest.raises(ConfigError, match=r"call onnxq\.quantize_dynamic"):
        onnxq.quantize_static("in.onnx", "out.onnx", config=QuantConfig(mode="dynamic"))


def test_scales_that_cover_the_largest_weights(make):
    made = make(MATMUL, weight_method="absmax")
    scales = next(v for n, v in made.model.graph.initializers.items() if n.startswith("w_scale"))
    weight = load(made.float).graph.initializers["w"].const_value.numpy()
    assert np.allclose(scales.const_value.numpy(), np.abs(weight).max(0) / 127)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_tells_what_became_of_the_model(tmp_path):
    ir.save(parse(MATMUL), tmp_path / "in.onnx")
    done = onnxq_command("quantize", tmp_path / "in.onnx", tmp_path / "out.onnx", "--mode", "dynamic")
    assert done.returncode == 0, done.stderr
    out = " ".join(done.stdout.split())
    assert "1 of 1 MatMul" in out
    assert "1 DynamicQuantizeMatMul" in out
    assert "equalize: nothing to do" in out
    assert (tmp_path / "out.onnx").is_file()


def test_the_plan_is_shown_and_nothing_written(tmp_path):
    ir.save(parse(BODY), tmp_path / "in.onnx")
    options = ("--mode", "dynamic", "--dry-run")
    done = onnxq_command("quantize", tmp_path / "in.onnx", tmp_path / "out.onnx", *options)
    assert "2 in integers" in done.stdout
    assert not (tmp_path / "out.onnx").exists()


def test_options_of_static_mode_are_wrong_usage(tmp_path):
    done = onnxq_command("quantize", "in.onnx", "out.onnx", "--mode", "dynamic", "--goal", "sqnr>=20")
    assert (done.returncode, done.stdout) == (2, "")
    assert "static only: goal" in done.stderr


def test_saved_options_give_the_same(tmp_path):
    ir.save(parse(MATMUL), tmp_path / "in.onnx")
    save = ("--mode", "dynamic", "--save-config", tmp_path / "c.yaml")
    assert onnxq_command("quantize", tmp_path / "in.onnx", tmp_path / "a.onnx", *save).returncode == 0
    read = ("--config", tmp_path / "c.yaml")
    assert onnxq_command("quantize", tmp_path / "in.onnx", tmp_path / "b.onnx", *read).returncode == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


# --- what no range suits --------------------------------------------------------------------------

FREQUENCIES = 10.0 ** -np.linspace(0, 4, 64)

ANGLES = {
    "MatMul": (
        "int64[1] last, float[1,64] freqs",
        "p = Unsqueeze (f, last) a = MatMul (p, freqs)",
        {"last": [-1], "freqs": FREQUENCIES},
    ),
    "Gemm": (
        "int64[2] column, int64[3] whole, float[1,64] freqs",
        "p = Reshape (f, column) b = Gemm (p, freqs) a = Reshape (b, whole)",
        {"column": [-1, 1], "whole": [2, 3, 64], "freqs": FREQUENCIES},
    ),
    "Gather": (
        "float[512,64] table",
        "a = Gather (table, ids)",
        {"table": np.arange(512)[:, None] * FREQUENCIES},
    ),
}
"""What computes the angles of rotary embeddings: constants, nodes, values."""


@pytest.mark.parametrize("operator", ANGLES)
@pytest.mark.parametrize(
    "options", [{}, {"target": "openvino"}, {"target": "tensorrt", "weight": "float16"}], ids=str
)
def test_angles_of_positions_stay_float(make, operator, options):
    declared, nodes, given = ANGLES[operator]
    made = make(
        f"""g (int64[2,3] ids, float[2,3,64] x) => (float[2,3,64] y) <float[64,64] w, {declared}> {{
            f = Cast <to = 1> (ids) {nodes} c = Cos (a) s = Sin (a) d = Mul (x, c) e = Add (d, s)
            y = MatMul (e, w) }}""",
        given,
        **options,
    )
    kept = {node.op_type: node.reason for node in made.result.plan.float_nodes.values()}
    assert "angles" in kept[operator]
    assert made.closeness(ids=np.array([[0, 77, 463], [5, 300, 511]])) > 25


def test_weights_that_a_loop_carries_along_are_quantized(make):
    """tf2onnx writes recurrent layers like this."""
    weights = np.random.default_rng(0).standard_normal((64, 64)) / 8
    made = make(LOOP, {"opset": 15, "w": weights}, target="onnxruntime-avx2")
    assert made.operators["MatMulInteger"] == 1
    stored = made.model.graph.initializers.values()
    assert [v.dtype for v in stored if v.const_value.size == 64 * 64] == [ir.DataType.INT8]
    assert made.closeness(n=np.array(3)) > 25
