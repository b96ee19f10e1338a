"""Random token ids tell how large the inputs of products are, part by part, without data."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.core.progress import silent
from onnxq.graph.files import load
from onnxq.pipelines.weight_only.choice.input_squares import input_squares
from onnxq.pipelines.weight_only.pipeline import _prepare
from onnxq.pipelines.weight_only.streaming import WeightWork

TOKENS = """g (int64[N,M] i) => (float[N,M,48] y) <float[50,64] t, float[64,96] u, float[96,48] w>
{ e = Gather(t, i)  a = MatMul(e, u)  r = Relu(a)  y = MatMul(r, w) }"""
NUMBERS = "g (float[N,M,64] x) => (float[N,M,48] y) <float[64,48] w> { y = MatMul(x, w) }"


def table() -> np.ndarray:
    """Columns of very different size."""
    rng = np.random.default_rng(5)
    return (rng.standard_normal((50, 64)) * np.exp(2 * rng.standard_normal(64))).astype(np.float32)


def work_of(folder: Path, text: str) -> WeightWork:
    model = parse(text)
    if "t" in model.graph.initializers:
        model.graph.initializers["t"].const_value = ir.tensor(table(), name="t")
    ir.save(model, folder / "float.onnx")
    return _prepare(folder / "float.onnx", QuantConfig(mode="weight-only"))


def measured(work: WeightWork) -> dict[str, np.ndarray]:
    return dict(input_squares(work.model, work.products, QuantConfig(), silent))


@pytest.mark.parametrize("part", [1, 2**26])
def test_mean_squares_are_those_of_the_inputs(
    part: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.input_squares.PART_BYTES", part)
    work = work_of(tmp_path, TOKENS)
    first, second = (measured(work)[product.node.name] for product in work.products)
    expected = np.square(table()).mean(axis=0)
    assert np.corrcoef(np.log(first), np.log(expected))[0, 1] > 0.99
    hidden = np.maximum(table() @ work.products[0].operand.tensor.numpy(), 0)
    assert np.corrcoef(second, np.square(hidden).mean(axis=0))[0, 1] > 0.95


def test_the_given_model_stays_as_it_is(tmp_path: Path) -> None:
    work = work_of(tmp_path, TOKENS)
    measured(work)
    assert work.model.graph.num_nodes() == 4
    assert set(work.model.graph.initializers) == {"t", "u", "w"}


def test_models_without_token_ids_are_not_run(tmp_path: Path) -> None:
    assert measured(work_of(tmp_path, NUMBERS)) == {}


def test_large_models_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.input_squares.MOST_BYTES", 1000)
    assert measured(work_of(tmp_path, TOKENS)) == {}
    assert "too large to run on random token ids" in caplog.text
    caplog.clear()
    assert measured(work_of(tmp_path, NUMBERS)) == {}
    assert not caplog.text


def test_a_model_that_random_ids_do_not_suit(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = TOKENS.replace("a = MatMul(e, u)", "s = Add(e, p)  a = MatMul(s, u)").replace(
        "float[50,64] t", "float[50,64] t, float[7,64] p"
    )
    assert measured(work_of(tmp_path, text)) == {}
    assert "do not suit" in caplog.text


def test_weights_are_better_on_other_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_of(tmp_path, TOKENS)
    ids = {"i": np.random.default_rng(9).integers(0, 50, (4, 40))}
    before = open_session(tmp_path / "float.onnx").run(None, ids)[0]

    def error() -> float:
        config = QuantConfig(mode="weight-only", exclude=("op:Gather",), format="dequantize")
        onnxq.quantize_weights(tmp_path / "float.onnx", tmp_path / "q.onnx", config)
        after = open_session(load(tmp_path / "q.onnx")).run(None, ids)[0]
        return float(np.square(after - before).mean())

    known = error()
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.input_squares.MOST_BYTES", 0)
    assert known < 0.8 * error()
