"""Weights chosen with data: they are better on new samples, in both forms, wherever the matrix is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.algorithms.weights.block_scales import BlockWeights
from onnxq.core.config import QuantConfig
from onnxq.graph.files import load
from onnxq.pipelines.weight_only.choice.staged_run import StagedRun
from onnxq.pipelines.weight_only.pipeline import _prepare
from onnxq.pipelines.weight_only.streaming import WeightWork

FORMATS = ("matmulnbits", "dequantize")

MATMUL = "g (float[N,M,64] x) => (float[N,M,48] y) <float[64,48] w> { y = MatMul(x, w) }"
UNEVEN = "g (float[N,M,75] x) => (float[N,M,48] y) <float[75,48] w> { y = MatMul(x, w) }"
LEFT = "g (float[N,64,M] x) => (float[N,48,M] y) <float[48,64] w> { y = MatMul(w, x) }"
TURNED = """g (float[N,M,64] x) => (float[N,M,48] y) <float[48,64] w>
{ t = Transpose<perm=[1,0]>(w)  y = MatMul(x, t) }"""
ONE = "g (float[N,M,64] x) => (float[N,M,48] y) <float[1,64,48] w> { y = MatMul(x, w) }"
GEMM_B = "g (float[N,64] x) => (float[N,48] y) <float[48,64] w, float[48] b> { y = Gemm<transB=1>(x, w, b) }"
HALF = "g (float16[N,M,64] x) => (float16[N,M,48] y) <float16[64,48] w> { y = MatMul(x, w) }"
CAST = """g (float[N,M,64] x) => (float[N,M,48] y) <float16[64,48] w>
{ c = Cast<to=1>(w)  y = MatMul(x, c) }"""
GATED = """g (float[N,M,64] x) => (float[N,M,64] y) <float[64,96] u, float[64,96] v, float[96,64] w>
{ a = MatMul(x, u)  b = MatMul(x, v)  s = Sigmoid(a)  c = Mul(s, b)  o = MatMul(c, w)  y = Add(o, x) }"""
BODY = """g (float[N,64] x, bool flag) => (float[N,48] y) <float[64,48] w>
{ y = If(flag) <then_branch = t () => (float[N,48] a) { a = MatMul(x, w) },
                else_branch = e () => (float[N,48] d) { m = MatMul(x, w)  d = Neg(m) }> }"""
TWICE = """g (float[N,64] x) => (float[N,64] y) <float[64,64] w>
{ a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"""

WITH_A_STAGE = {
    "matmul": MATMUL,
    "uneven": UNEVEN,
    "left": LEFT,
    "turned": TURNED,
    "one": ONE,
    "gemm_b": GEMM_B,
    "half": HALF,
    "cast": CAST,
    "gated": GATED,
}


def samples(model: ir.Model, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Samples with correlated channels: those of an axis of 64 or 75."""
    mixing = np.random.default_rng(7).standard_normal((8, 75))
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        feeds = {}
        for value in model.graph.inputs:
            if value.dtype == ir.DataType.BOOL:
                feeds[value.name] = np.array(True)
                continue
            shape = [size if isinstance(size, int) else 12 for size in value.shape]
            axis = next(i for i, size in enumerate(shape) if size in (64, 75))
            rest = [size for i, size in enumerate(shape) if i != axis]
            rows = rng.standard_normal((*rest, 8)) @ mixing[:, : shape[axis]]
            rows += 0.2 * rng.standard_normal(rows.shape)
            feeds[value.name] = np.moveaxis(rows, -1, axis).astype(value.dtype.numpy())
        made.append(feeds)
    return made


def quantized(folder: Path, text: str, **options: object) -> tuple[onnxq.QuantResult, Path, Path]:
    original, output = folder / "float.onnx", folder / "blocks.onnx"
    ir.save(parse(text), original)
    data = samples(load(original), 10, seed=1)
    config = QuantConfig(mode="weight-only", **options)
    return onnxq.quantize_weights(original, output, config, data=data), original, output


def error(original: Path, output: Path) -> float:
    """The noise-to-signal ratio on new samples."""
    noise = power = 0.0
    for feeds in samples(load(original), 5, seed=2):
        before, after = (
            open_session(path).run(None, feeds)[0].astype(np.float64) for path in (original, output)
        )
        noise, power = noise + np.square(before - after).sum(), power + np.square(before).sum()
    return float(noise / power)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("weight", ["int4", "uint4"])
@pytest.mark.parametrize("name", WITH_A_STAGE)
def test_data_makes_weights_better(name: str, weight: str, form: str, tmp_path: Path) -> None:
    result, original, output = quantized(tmp_path, WITH_A_STAGE[name], format=form, weight=weight)
    effect = result.corrections[-1]
    assert effect.kept
    with_data = error(original, output)
    quantized(tmp_path, WITH_A_STAGE[name], format=form, weight=weight, correct=("none",))
    assert with_data < 0.6 * error(original, output)


def test_weights_that_are_worse_on_held_out_samples_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(rows: object, shape: tuple[int, int], grid: object, *rest: object) -> BlockWeights:
        blocks = (shape[0], shape[1] // 32)
        zero = np.zeros(blocks, np.uint8)
        return BlockWeights(np.zeros((*blocks, 32), np.uint8), np.ones(blocks, np.float32), zero)

    quantized(tmp_path, MATMUL, correct=("none",))
    plain = (tmp_path / "blocks.onnx").read_bytes()
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.sequential_rounding.gptq_blocks", nothing)
    result, _, output = quantized(tmp_path, MATMUL)
    (effect,) = result.corrections
    assert not effect.kept
    assert "dropped" in effect.outcome
    assert output.read_bytes() == plain


@pytest.mark.parametrize("text", [BODY, TWICE])
def test_products_without_a_stage_are_rounded_without_data(text: str, tmp_path: Path) -> None:
    result, original, output = quantized(tmp_path, text)
    (effect,) = result.corrections
    assert "left out" in effect.outcome
    assert error(original, output) < 0.2


def test_synthetic_samples_choose_no_weights(tmp_path: Path) -> None:
    ir.save(parse(MATMUL), tmp_path / "float.onnx")
    result = onnxq.quantize_weights(tmp_path / "float.onnx", tmp_path / "blocks.onnx")
    assert result.corrections == ()


def work_of(folder: Path, text: str) -> WeightWork:
    ir.save(parse(text), folder / "float.onnx")
    return _prepare(folder / "float.onnx", QuantConfig(mode="weight-only"))


def test_later_stages_see_the_weights_of_earlier_ones(tmp_path: Path) -> None:
    work = work_of(tmp_path, GATED)
    feeds = samples(work.model, 3, seed=1)
    batches = [Sample(f"{i}", each) for i, each in enumerate(feeds)]
    run = StagedRun(work.model, work.products, batches)
    up, gate, down = work.products
    assert [run.stages[product.node.name] for product in work.products] == [0, 0, 1]
    assert sum(map(len, run.rows(up, 10**6))) == 3 * 12 * 12
    for product in (up, gate):
        rows, columns = product.sizes
        run.change(product, np.zeros((rows, columns), np.float32))
    assert not any(rows.any() for rows in run.rows(down, 10**6))


def test_rows_are_evenly_spread_and_memory_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = work_of(tmp_path, GATED)
    batches = [Sample(f"{i}", each) for i, each in enumerate(samples(work.model, 8, seed=1))]
    run = StagedRun(work.model, work.products, batches)
    assert [len(rows) for rows in run.rows(work.products[0], 80)] == [10] * 8
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.staged_run.HELD_BYTES", 4 * 4 * 96 * 144 * 3)
    few = StagedRun(work.model, work.products, batches)
    assert len(few.rows(work.products[0], 80)) == 3


def test_the_given_model_stays_as_it_is(tmp_path: Path) -> None:
    work = work_of(tmp_path, GATED)
    before = {name: value.const_value for name, value in work.model.graph.initializers.items()}
    batches = [Sample("0", samples(work.model, 1, seed=1)[0])]
    run = StagedRun(work.model, work.products, batches)
    for product in work.products:
        run.rows(product, 100)
        run.change(product, np.zeros(product.sizes, np.float32))
    assert before == {name: value.const_value for name, value in work.model.graph.initializers.items()}
    assert work.model.graph.num_nodes() == 6
