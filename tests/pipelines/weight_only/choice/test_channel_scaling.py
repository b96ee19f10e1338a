"""Channels are scaled before rounding: the float model stays the same, and few bits lose less."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from calibrators.session import open_session
from onnxq.core.config import QuantConfig
from onnxq.graph.files import load
from onnxq.graph.nodes import add_initializer
from onnxq.graph.passes import typed
from onnxq.pipelines.weight_only.choice.bit_allocation import FLOAT, with_bits
from onnxq.pipelines.weight_only.choice.channel_scaling import ChannelScaling, choose_scaling
from onnxq.pipelines.weight_only.choice.input_squares import input_squares
from onnxq.pipelines.weight_only.choice.rounding import EachAlone
from onnxq.pipelines.weight_only.pipeline import _prepare
from onnxq.pipelines.weight_only.products import read_layout
from onnxq.pipelines.weight_only.streaming import WeightWork, write_streamed

HEAD = "g (int64[N,M] i) => (float[N,M,64] y) <float[50,64] t, "

NORM = f"""{HEAD}float[64] g, float eps, float[64,96] u, float[64,96] v, float[96,64] w>
{{ x = Gather(t, i)  q = Mul(x, x)  m = ReduceMean<axes=[-1], keepdims=1>(q)  e = Add(m, eps)  r = Sqrt(e)
   d = Div(x, r)  n = Mul(g, d)  a = MatMul(n, u)  b = MatMul(n, v)  c = Sigmoid(a)  o = Mul(c, b)
   y = MatMul(o, w) }}"""
LAYER_NORM = f"""{HEAD}float[64] g, float[64] s, float[64,64] u>
{{ x = Gather(t, i)  n = LayerNormalization<axis=-1>(x, g, s)  y = MatMul(n, u) }}"""
ATTENTION = f"""{HEAD}int64[4] four, int64[3] three, float[64,64] q, float[64,64] v, float[64,64] w>
{{ x = Gather(t, i)  a = MatMul(x, q)  b = MatMul(x, v)  c = Reshape(a, four)  d = Reshape(b, four)
   e = Transpose<perm=[0,2,1,3]>(c)  f = Transpose<perm=[0,2,3,1]>(c)  h = MatMul(e, f)  p = Softmax(h)
   k = Transpose<perm=[0,2,1,3]>(d)  l = MatMul(p, k)  m = Transpose<perm=[0,2,1,3]>(l)
   o = Reshape(m, three)  y = MatMul(o, w) }}"""
GIVEN = {
    "eps": np.array(1e-5, np.float32),
    "four": np.array([0, 0, 4, 16]),
    "three": np.array([0, 0, 64]),
}
SCALED = {
    "norm": (NORM, {"u", "v", "w"}),
    "layer norm": (LAYER_NORM, {"u"}),
    "attention": (ATTENTION, {"w"}),
}
"""Model -> the matrices whose inputs are scaled."""


def saved(folder: Path, text: str, halve: bool = False) -> Path:
    """Store a model with a few large channels behind each norm and each first product."""
    text = text.replace("float[", "float16[").replace("float eps", "float16 eps") if halve else text
    model = parse(text, opset=17)
    rng = np.random.default_rng(3)
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None
        array = GIVEN.get(name, value.const_value.numpy())
        if name in ("g", "u", "v"):
            array = array * np.where(rng.random(array.shape[-1]) < 0.1, 12, 1)
        value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=name)
    path = folder / "float.onnx"
    ir.save(model, path)
    return path


def scaling_of(work: WeightWork) -> ChannelScaling:
    return choose_scaling(work, input_squares(work.model, work.products, QuantConfig(), lambda *_: None))


def ids(seed: int) -> Mapping[str, np.ndarray]:
    return {"i": np.random.default_rng(seed).integers(0, 50, (2, 9))}


def error(one: object, other: object) -> float:
    """Noise beside signal, as powers."""
    before, after = (
        open_session(each, exact=False).run(None, ids(1))[0].astype(np.float64) for each in (one, other)
    )
    return float(np.square(before - after).sum() / np.square(before).sum())


@pytest.mark.parametrize("name", SCALED)
def test_the_scaled_float_model_computes_the_same(name: str, tmp_path: Path) -> None:
    text, expected = SCALED[name]
    path = saved(tmp_path, text)
    work = _prepare(path, QuantConfig(mode="weight-only"))
    scaling = scaling_of(work)
    columns = {k for k, factors in scaling.columns.items() if (factors != 1).any()}
    readers = {work.model.graph.node(k).inputs[1].name for k in columns}
    assert readers == expected
    model = typed(scaling.applied(work).model)
    for product in scaling.applied(_prepare(path, QuantConfig(mode="weight-only"))).products:
        read, count, _ = product.reader()
        rows = np.concatenate([read(0, 5), read(5, count)])
        node = model.graph.node(product.node.name)
        weights = add_initializer(model, f"{node.name}_w", read_layout(rows, product))
        node.replace_input_with(product.index, weights)
    assert error(path, model) < 1e-10


@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("form", ["matmulnbits", "dequantize"])
@pytest.mark.parametrize("name", ["norm", "layer norm"])
def test_few_bits_lose_less(name: str, form: str, halve: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, SCALED[name][0], halve)
    errors = {}
    for correct in ("none", "equalize"):
        config = QuantConfig(mode="weight-only", format=form, correct=correct, exclude=("op:Gather",))
        result = onnxq.quantize_weights(path, tmp_path / f"{correct}.onnx", config)
        errors[correct] = error(path, tmp_path / f"{correct}.onnx")
        assert [one.name for one in result.corrections] == ["equalize"] * (correct != "none")
    assert errors["equalize"] < 0.75 * errors["none"]


def test_large_matrices_that_stay_float_get_no_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.pipelines.weight_only.choice.channel_scaling.LARGEST_CONSTANT", 1000)
    path = saved(tmp_path, NORM)
    names = [each.node.name for each in _prepare(path, QuantConfig(mode="weight-only")).products]
    work = _prepare(path, QuantConfig(mode="weight-only", exclude=(names[0],)))
    scaling = scaling_of(work)
    assert names[1] in scaling.columns
    assert (scaling.columns[names[1]] == 1).all()
    assert (scaling.columns[names[2]] != 1).any()


def test_without_measured_inputs_nothing_is_scaled(tmp_path: Path) -> None:
    work = _prepare(saved(tmp_path, NORM), QuantConfig(mode="weight-only"))
    scaling = choose_scaling(work, {})
    assert (scaling.columns, scaling.effects) == ({}, ())
    assert scaling.applied(work).products == work.products


@pytest.mark.parametrize("kept", [(0, 1, 2), (2,), (0, 1)])
def test_matrices_that_stay_float_for_a_goal_are_scaled_too(kept: tuple[int, ...], tmp_path: Path) -> None:
    path = saved(tmp_path, NORM)
    config = QuantConfig(mode="weight-only", weight="uint8", exclude=("op:Gather",))
    scaling = scaling_of(_prepare(path, config))
    work = scaling.applied(_prepare(path, config))
    names = [str(product.node.name) for product in work.products]
    assert all((scaling.columns[name] != 1).any() for name in names)
    bits = {name: FLOAT if place in kept else 8 for place, name in enumerate(names)}
    changed = with_bits(work, bits)
    output = tmp_path / "mixed.onnx"
    write_streamed(changed, EachAlone(squares=scaling.squares), output, lambda *_: None)
    assert error(path, output) < 1e-3  # activations are rounded to 8 bits too
    assert [node.op_type for node in load(output).graph].count("MatMul") == len(kept)
