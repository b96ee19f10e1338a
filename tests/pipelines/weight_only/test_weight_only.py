"""Mode weight-only: what each product becomes in both forms, and that outputs are close to float."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cli import onnxq as onnxq_command
from graphs import parse
from weight_blocks import FORMATS, Made

import onnxq
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, ModelError, TargetError
from onnxq.graph.files import load

MATMUL = "g (float[N,M,64] x) => (float[N,M,48] y) <float[64,48] w> { y = MatMul(x, w) }"
UNEVEN = "g (float[N,M,75] x) => (float[N,M,48] y) <float[75,48] w> { y = MatMul(x, w) }"
LEFT = "g (float[N,64,M] x) => (float[N,48,M] y) <float[48,64] w> { y = MatMul(w, x) }"
TURNED = """g (float[N,M,64] x) => (float[N,M,48] y) <float[48,64] w>
{ t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }"""
ONE = "g (float[N,M,64] x) => (float[N,M,48] y) <float[1,64,48] w> { y = MatMul(x, w) }"
EXPERTS = "g (float[3,M,64] x) => (float[3,M,48] y) <float[3,64,48] w> { y = MatMul(x, w) }"
GEMM = "g (float[N,64] x) => (float[N,48] y) <float[64,48] w, float[48] b> { y = Gemm(x, w, b) }"
GEMM_B = (
    "g (float[N,64] x) => (float[N,48] y) <float[48,64] w, float[1,48] b> { y = Gemm<transB=1>(x, w, b) }"
)
GEMM_SCALED = """g (KIND[N,75] x) => (KIND[N,48] y) <KIND[75,48] w, KIND[48] b>
{ y = Gemm<alpha=-0.3, beta=2.5>(x, w, b) }"""
GEMM_ROW = """g (KIND[N,75] x) => (KIND[N,48] y) <KIND[48,75] w, KIND[1,48] b>
{ y = Gemm<alpha=4.0, beta=0.5, transB=1>(x, w, b) }"""
GEMM_COMPUTED = """g (KIND[75,N] x, KIND[N,1] b) => (KIND[N,48] y) <KIND[75,48] w>
{ y = Gemm<beta=-3.0, transA=1>(x, w, b) }"""
GEMM_NO_BIAS = """g (KIND[75,N] x) => (KIND[N,48] y) <KIND[48,75] w>
{ y = Gemm<alpha=0.5, transA=1, transB=1>(x, w) }"""
GEMM_BODY = """g (KIND[75,N] x, bool flag) => (KIND[N,48] y) <KIND[75,48] w, KIND[48] b>
{ y = If(flag) <then_branch = t () => (KIND[N,48] a) { a = Gemm<alpha=2.0, transA=1>(x, w, b) },
                else_branch = e () => (KIND[N,48] d) { d = Gemm<beta=0.1, transA=1>(x, w, b) }> }"""
SCALED = (GEMM_SCALED, GEMM_ROW, GEMM_COMPUTED, GEMM_NO_BIAS, GEMM_BODY)
HALF = "g (float16[N,M,64] x) => (float16[N,M,48] y) <float16[64,48] w> { y = MatMul(x, w) }"
CAST = """g (float[N,M,64] x) => (float[N,M,48] y) <float16[64,48] w>
{ c = Cast<to=1>(w)  y = MatMul(x, c) }"""
BODY = """g (float[N,64] x, bool flag) => (float[N,48] y) <float[64,48] w>
{ y = If(flag) <then_branch = t () => (float[N,48] a) { a = MatMul(x, w) },
                else_branch = e () => (float[N,48] d) { m = MatMul(x, w)  d = Neg(m) }> }"""
LOOP = """g (float[N,64] x, int64 n) => (float[N,64] y) <float[64,64] w, bool yes = {1}>
{ y, last = Loop(n, yes, x, w) <body = l (int64 i, bool c, float[N,64] s, float[64,64] v)
    => (bool o, float[N,64] t, float[64,64] u) { o = Identity(c)  m = MatMul(s, v)  t = Tanh(m)  u = Identity(v) }> }"""
TIED = """g (int64[N,M] i) => (float[N,M,300] y) <float[300,64] w>
{ e = Gather(w, i)  t = Transpose<perm=[1,0]>(w)  y = MatMul(e, t) }"""
TWICE = """g (float[N,64] x) => (float[N,64] y) <float[64,64] w>
{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"""
TWO = """g (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64,64] v>
{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, v) }"""
FUNCTION = "g (float[N,64] x) => (float[N,48] y) <float[64,48] w> { y = local.f(x, w) }"
BODY_OF_F = '<domain: "local", opset_import: ["" : 13]> f (a, b) => (c) { c = MatMul(a, b) }'

KERNELS = {"matmulnbits": "MatMulNBits", "dequantize": "DequantizeLinear"}
EVERYWHERE = {
    "matmul": MATMUL,
    "uneven": UNEVEN,
    "left": LEFT,
    "turned": TURNED,
    "one": ONE,
    "gemm": GEMM,
    "gemm_b": GEMM_B,
    "half": HALF,
    "cast": CAST,
    "body": BODY,
    "loop": LOOP,
    "twice": TWICE,
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", EVERYWHERE)
def test_products_get_weights_in_blocks(name: str, form: str, tmp_path: Path) -> None:
    made = Made(tmp_path, EVERYWHERE[name], format=form, weight="uint8")
    assert KERNELS[form] in made.counts
    assert made.error() < 0.05  # MatMulNBits rounds activations to 8 bits, in a loop again and again
    onnx.checker.check_model(made.output)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("text", SCALED)
def test_gemm_with_factors_and_transposed_data(text: str, kind: str, form: str, tmp_path: Path) -> None:
    made = Made(tmp_path, text.replace("KIND", kind), format=form, weight="uint8")
    assert KERNELS[form] in made.counts
    assert made.counts.get("Gemm", 0) == (0 if form == "matmulnbits" else text.count("Gemm"))
    assert made.error() < 0.02


def test_an_alpha_that_scales_cannot_take_up(tmp_path: Path) -> None:
    text = GEMM_SCALED.replace("KIND", "float16").replace("-0.3", "0.001")
    with pytest.raises(ModelError, match=r"scales cannot take up its alpha 0.001 \(--format dequantize\)"):
        Made(tmp_path, text)
    assert "DequantizeLinear" in Made(tmp_path, text, format="dequantize").counts


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("weight", "most"), [("int4", 0.12), ("uint4", 0.11), ("int8", 0.02), ("uint8", 0.02)]
)
@pytest.mark.parametrize("size", [16, 64])
def test_types_and_block_sizes(form: str, weight: str, most: float, size: int, tmp_path: Path) -> None:
    assert Made(tmp_path, MATMUL, format=form, weight=weight, block_size=size).error() < most


def test_two_bits(tmp_path: Path) -> None:
    made = Made(tmp_path, MATMUL, weight="uint2")
    assert made.error() < 0.5
    (node,) = made.model.graph
    assert node.attributes["bits"].as_int() == 2


@pytest.mark.parametrize("form", FORMATS)
def test_functions_are_inlined(form: str, tmp_path: Path) -> None:
    made = Made(tmp_path, FUNCTION, {"functions": BODY_OF_F, "check": False}, format=form)
    assert KERNELS[form] in made.counts


def test_the_form_of_the_target_is_the_default(tmp_path: Path) -> None:
    assert "MatMulNBits" in Made(tmp_path, MATMUL).counts
    made = Made(tmp_path, MATMUL, target="tensorrt")
    assert made.counts == {"DequantizeLinear": 1, "MatMul": 1}
    assert made.model.graph.initializers["w_blocks"].dtype == ir.DataType.INT4
    assert made.model.graph.opset_imports[""] == 21


def test_zero_points_are_the_default_and_packed(tmp_path: Path) -> None:
    (node,) = Made(tmp_path, MATMUL).model.graph
    assert [tuple(value.shape) for value in node.inputs[1:]] == [(48, 2, 16), (48, 2), (48, 1)]
    assert node.attributes["accuracy_level"].as_int() == 4


def test_a_stack_of_experts_has_blocks_for_each(tmp_path: Path) -> None:
    made = Made(tmp_path, EXPERTS, format="dequantize", weight="uint8")
    assert tuple(made.model.graph.initializers["w_scale"].shape) == (3, 2, 48)
    assert made.error() < 0.02


STACKED = {
    "each its own data": ("3,M,75", "3,M,48", "3,75,48", "MatMul(x, w)"),
    "the same data": ("1,M,75", "3,M,48", "3,75,48", "MatMul(x, w)"),
    "a matrix": ("M,75", "3,M,48", "3,75,48", "MatMul(x, w)"),
    "known at run time": ("E,M,75", "3,M,48", "3,75,48", "MatMul(x, w)"),
    "four axes": ("N,3,M,75", "N,3,M,48", "3,75,48", "MatMul(x, w)"),
    "left": ("N,3,75,M", "N,3,48,M", "3,48,75", "MatMul(w, x)"),
    "of a shape to be inferred": ("3,M,75", "3,M,48", "3,75,48", "MatMul(r, w)"),
    "transposed": ("3,M,75", "3,M,48", "3,48,75", "MatMul(x, t)"),
}
"""Shapes of the data, the output and the stack of matrices, and their product."""


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("name", STACKED)
def test_each_matrix_of_a_stack_gets_an_operator(name: str, kind: str, tmp_path: Path) -> None:
    given, wanted, stack, product = STACKED[name]
    turned = "t = Transpose<perm=[0,2,1]>(w)" if "t)" in product else "r = Neg(x)" if "r," in product else ""
    made = Made(
        tmp_path,
        f"g ({kind}[{given}] x) => ({kind}[{wanted}] y) <{kind}[{stack}] w> {{ {turned} y = {product} }}",
        weight="uint8",
        sizes={"E": 1} if name == "known at run time" else {},
    )
    assert made.counts["MatMulNBits"] == 3
    assert "MatMul" not in made.counts
    assert tuple(made.model.graph.initializers["w_scale"].shape) == (48, 3)
    assert made.error() < 0.02


EINSUMS = {
    "bsh,hnd->bsnd": ("N,M,75", "N,M,6,8", "75,6,8"),
    "bsh,nhd->bsnd": ("N,M,75", "N,M,6,8", "6,75,8"),
    "bsnd,ndh->bsh": ("N,M,5,15", "N,M,48", "5,15,48"),
    "bsh,vh->bsv": ("N,M,75", "N,M,48", "48,75"),
    "ebh,ehd->ebd": ("3,M,75", "3,M,48", "3,75,48"),
}
"""Equations, and the shapes of data, output and constant."""


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum_of_a_constant(equation: str, form: str, external: bool, tmp_path: Path) -> None:
    data, wanted, weight = EINSUMS[equation]
    text = f"""g (float[{data}] x) => (float[{wanted}] y) <float[{weight}] w>
    {{ y = Einsum<equation="{equation}">(x, w) }}"""
    made = Made(tmp_path, text, external=external, format=form, weight="uint8")
    assert KERNELS[form] in made.counts
    assert "Einsum" not in made.counts
    assert made.error() < 0.02
    assert (tmp_path / "blocks.onnx.data").exists() == external


def test_einsum_that_is_no_product_stays_and_is_told(tmp_path: Path) -> None:
    text = """g (float[N,64] x) => (float[N,N] y) <float[64,64] w>
    { a = MatMul(x, w)  y = Einsum<equation="ik,jk->ij">(a, x) }"""
    (node,) = Made(tmp_path, text).result.plan.float_nodes.values()
    assert node.reason == "its equation is no product of data and a constant matrix"


def test_stacks_of_stacks_stay_float(tmp_path: Path) -> None:
    text = "g (float[2,3,M,64] x) => (float[2,3,M,48] y) <float[2,3,64,48] w> { y = MatMul(x, w) }"
    with pytest.raises(ModelError, match="MatMulNBits takes one matrix, not a stack of 4 axes"):
        Made(tmp_path, text)
    assert Made(tmp_path, text, format="dequantize", weight="uint8").error() < 0.02


@pytest.mark.parametrize("form", FORMATS)
def test_shared_weights_are_stored_once(form: str, tmp_path: Path) -> None:
    made = Made(tmp_path, TWICE, format=form)
    assert sum(name.startswith("w") for name in made.model.graph.initializers) == 3
    assert made.counts[KERNELS[form]] == 2


def test_a_tied_table_is_one_table_in_8_bits(tmp_path: Path) -> None:
    made = Made(tmp_path, TIED)
    assert made.counts == {"GatherBlockQuantized": 1, "Reshape": 1, "MatMulNBits": 1}
    assert made.error() < 0.02
    sizes = [v.const_value.nbytes for v in made.model.graph.initializers.values()]
    assert sum(sizes) == 300 * 64 + 300 * 4 + 3 * 8


@pytest.mark.parametrize("options", [{"target": "tensorrt"}, {"exclude": "op:Gather"}])
def test_a_table_that_stays_float_is_not_stored_twice(options: dict, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its matrix is an embedding table too"):
        Made(tmp_path, TIED, **options)


LONE = """g (int64[N,M] i) => (float[N,M,48] y) <float[300,64] t, float[64,48] w>
{ e = Gather(t, i)  y = MatMul(e, w) }"""
COSINES = """g (int64[M] p, float[N,M,64] x) => (float[N,M,48] y) <float[300,64] t, float[64,48] w>
{ c = Gather(t, p)  o = Neg(c)  r = Mul(x, o)  y = MatMul(r, w) }"""
SMALL = LONE.replace("300", "30")


def test_an_embedding_table_alone_is_looked_up_in_8_bits(tmp_path: Path) -> None:
    made = Made(tmp_path, LONE, weight="uint8")
    assert made.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 1}
    assert made.error() < 0.02
    assert "t" not in made.model.graph.initializers


@pytest.mark.parametrize(
    ("text", "options"),
    [(COSINES, {}), (SMALL, {}), (LONE, {"exclude": ("op:Gather",)}), (LONE, {"target": "tensorrt"})],
)
def test_tables_that_stay_float(text: str, options: dict, tmp_path: Path) -> None:
    assert Made(tmp_path, text, **options).counts["Gather"] == 1


def test_a_tied_product_that_is_included_by_name(tmp_path: Path) -> None:
    made = Made(tmp_path, TIED, format="dequantize", include="MatMul_y", weight="uint8")
    assert made.counts == {"Gather": 1, "DequantizeLinear": 1, "MatMul": 1}
    assert made.error() < 0.02


def test_external_data_stays_external(tmp_path: Path) -> None:
    model = parse(MATMUL)
    ir.save(model, tmp_path / "in.onnx", external_data="in.bin", size_threshold_bytes=0)
    onnxq.quantize_weights(tmp_path / "in.onnx", tmp_path / "out.onnx")
    tensors = [value.const_value for value in load(tmp_path / "out.onnx").graph.initializers.values()]
    assert all(isinstance(t, ir.ExternalTensor) for t in tensors if t is not None and t.nbytes > 256)
    assert (tmp_path / "out.onnx.data").exists()
    open_session(tmp_path / "out.onnx")


def test_external_data_is_split_into_files_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.graph.files.SHARD_BYTES", 5000)
    ir.save(parse(TWO), tmp_path / "in.onnx", external_data="in.bin", size_threshold_bytes=0)
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((4, 64)).astype(np.float32)} for _ in range(10)]
    config = QuantConfig(mode="weight-only", weight="uint8", block_size=16)
    result = onnxq.quantize_weights(tmp_path / "in.onnx", tmp_path / "out.onnx", config, data=data)
    written = sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("out"))
    assert len(written) > 3
    sizes = [(tmp_path / name).stat().st_size for name in written]
    assert max(sizes[1:]) < 5000
    assert result.int8_bytes == sum(sizes)
    assert result.quality is not None
    assert result.quality.sqnr > 35


def test_one_file_stays_one_file(tmp_path: Path) -> None:
    Made(tmp_path, MATMUL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blocks.onnx", "float.onnx"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "weight-only", "weight": "float16"}, "mode weight-only takes"),
        ({"mode": "weight-only", "activation": "uint8"}, "quantizes no activations"),
        ({"mode": "weight-only", "correct": "bias"}, "takes none"),
        ({"format": "dequantize"}, "mode weight-only"),
        ({"mode": "dynamic", "format": "dequantize"}, "format"),
    ],
)
def test_options_of_other_modes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QuantConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tensorrt", "format": "matmulnbits"}, "no operator MatMulNBits"),
        ({"target": "tensorrt", "weight": "uint4"}, "takes weights of type int4"),
        ({"format": "dequantize", "weight": "uint2"}, "takes weights of type"),
        ({"block_size": 24}, "blocks of 16, 32"),
        ({"target": "qnn"}, "takes no weights in blocks"),
    ],
)
def test_what_a_target_does_not_take(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=message):
        Made(tmp_path, MATMUL, **options)


def test_weights_in_an_external_file_that_are_not_finite(tmp_path: Path) -> None:
    model = parse(MATMUL, w=np.inf)
    ir.save(model, tmp_path / "in.onnx", external_data="in.bin", size_threshold_bytes=0)
    with pytest.raises(ModelError, match="NaN or infinite"):
        onnxq.quantize_weights(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.bin", "in.onnx"]


def test_samples_are_compared_on(tmp_path: Path) -> None:
    ir.save(parse(MATMUL), tmp_path / "in.onnx")
    rng = np.random.default_rng(0)
    data = [{"x": rng.standard_normal((2, 3, 64)).astype(np.float32)} for _ in range(10)]
    result = onnxq.quantize_weights(tmp_path / "in.onnx", tmp_path / "out.onnx", data=data)
    assert result.quality is not None
    assert result.quality.sqnr > 18
    assert result.judged_on == "held-out samples"


def test_a_large_float_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.pipelines.weight_only.judgement.COMPARED_BYTES", 1000)
    made = Made(tmp_path, MATMUL)
    assert made.result.quality is None
    assert "which ONNX Runtime would hold in memory" in made.result.warnings[0]
    assert Made(tmp_path, MATMUL, verify="full").result.quality is not None
    assert "--verify off" in Made(tmp_path, MATMUL, verify="off").result.warnings[0]


def test_weights_that_are_not_finite(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="NaN or infinite: keep it in float with --exclude"):
        Made(tmp_path, MATMUL, {"w": np.nan})
    assert not (tmp_path / "blocks.onnx").exists()


def test_what_stays_float_and_why(tmp_path: Path) -> None:
    text = """g (float[N,64] x) => (float[N,N] y) <float[64,64] w, float[64,2] v>
    { a = MatMul(x, w)  b = MatMul(a, v)  t = Transpose<perm=[1,0]>(b)  y = MatMul(b, t) }"""
    reasons = [node.reason for node in Made(tmp_path, text).result.plan.float_nodes.values()]
    assert reasons == [
        "with less than 1024 weights there is little to save",
        "both its operands are computed at run time",
    ]


def test_the_command(tmp_path: Path) -> None:
    ir.save(parse(MATMUL), tmp_path / "in.onnx")
    done = onnxq_command("quantize", tmp_path / "in.onnx", tmp_path / "out.onnx", "--mode", "weight-only")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 MatMul" in done.stdout
    done = onnxq_command("inspect", tmp_path / "in.onnx", "--mode", "weight-only")
    assert done.returncode == 0, done.stderr


def test_a_report_without_its_graph_does_not_end_the_command(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no such node")

    monkeypatch.setattr("onnxq.pipelines.weight_only.pipeline.outline", fail)
    page = tmp_path / "report.html"
    made = Made(tmp_path, MATMUL, report=page)
    assert made.counts["MatMulNBits"] == 1
    assert "no such node" in page.read_text("utf-8")
