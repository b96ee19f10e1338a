"""Channels are brought to like sizes before ranges are found at run time, where that helps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from graphs import feeds_for, parse

import onnxq
from calibrators.session import open_session
from onnxq.algorithms.channels import equalize
from onnxq.core.config import QuantConfig
from onnxq.core.numerics import sqnr
from onnxq.graph.files import load
from onnxq.pipelines.dynamic import equalization

LARGE = [3, 17, 40]
"""Channels that a normalization makes larger than the others, by:"""
FACTOR = 40.0

NORM = """g (float[N,M,64] x) => (float[N,M,48] y, float[N,M,64] z)
<float[64] gamma, float[64] beta, float[64,48] w, float[64,48] v>
{ n = LayerNormalization(x, gamma, beta)  p = MatMul(n, w)  q = MatMul(n, v)  y = Add(p, q)  z = OTHER }"""

TOKENS = """g (int64[N,M] i) => (float[N,M,48] y) <float[512,64] table, float[64] gamma, float[64] beta, float[64,48] w>
{ e = Gather(table, i)  n = LayerNormalization(e, gamma, beta)  y = MatMul(n, w) }"""


def given(*weights):
    """A few large channels, which matrices make little of."""
    rng = np.random.default_rng(0)
    gamma = np.ones(64, np.float32)
    gamma[LARGE] = FACTOR
    matrices = {name: rng.normal(size=(64, 48)).astype(np.float32) for name in weights}
    for matrix in matrices.values():
        matrix[LARGE] /= FACTOR
    return {"gamma": gamma, "beta": np.zeros(64, np.float32), **matrices}


class Made:
    """A model with and without smoothing."""

    def __init__(self, folder, model, **options):
        self.float, self.output, self.plain = (folder / f"{n}.onnx" for n in ("float", "dynamic", "plain"))
        ir.save(model, self.float)
        options = {"mode": "dynamic", **options}
        self.result = onnxq.quantize_dynamic(self.float, self.output, QuantConfig(**options))
        without = QuantConfig(**{**options, "correct": ("none",)})
        self.without = onnxq.quantize_dynamic(self.float, self.plain, without)
        self.operators = Counter(node.op_type for node in load(self.output).graph)

    def gain(self, **feeds):
        """In dB, of the worst output, on other inputs."""
        feeds = feeds or feeds_for(load(self.float))
        float_, ours, plain = (
            open_session(p).run(None, feeds) for p in (self.float, self.output, self.plain)
        )
        worst = [min(sqnr(*pair) for pair in zip(float_, other, strict=True)) for other in (ours, plain)]
        return worst[0] - worst[1]


@pytest.fixture
def make(tmp_path):
    return lambda model, **options: Made(tmp_path, model, **options)


def normed(other="Neg(n)"):
    return parse(NORM.replace("OTHER", other), opset=17, **given("w", "v"))


def test_large_channels_are_made_smaller_by_a_mul_where_others_read_them(make):
    made = make(normed())
    (effect,) = made.result.corrections
    assert (effect.name, effect.kept) == ("equalize", True)
    assert made.gain() > 3
    plain = Counter(node.op_type for node in load(made.plain).graph)
    assert made.operators - plain == {"Mul": 1}  # one for both matrices
    assert made.without.corrections == ()


def test_a_normalization_that_matrices_alone_read_takes_the_factors_in(make):
    made = make(parse(TOKENS, opset=17, **given("w")))
    assert made.result.corrections[0].kept
    assert made.gain(i=np.random.default_rng(5).integers(0, 512, (4, 9))) > 3
    assert made.operators == Counter(node.op_type for node in load(made.plain).graph)


def test_what_does_not_help_is_left_out(make, monkeypatch):
    monkeypatch.setattr(equalization, "equalized", lambda draft, context: worse(draft.reference))
    made = make(normed())
    (effect,) = made.result.corrections
    assert effect.kept is False
    assert effect.gain < 0
    assert made.output.read_bytes() == made.plain.read_bytes()


def worse(model):
    """With larger channels still, which changes what is computed, too."""
    copy = model.clone()
    value = copy.graph.initializers["gamma"]
    value.const_value = ir.tensor(value.const_value.numpy() ** 2, name="gamma")
    return copy


def test_samples_are_asked_where_they_are_given(make, tmp_path, monkeypatch):
    seen = []
    kept = equalize.equalized
    monkeypatch.setattr(
        equalization, "equalized", lambda draft, context: seen.extend(context.fit) or kept(draft, context)
    )
    x = np.random.default_rng(2).normal(size=(20, 3, 64)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x)
    made = make(normed(), data=tmp_path / "data.npz")
    assert made.result.corrections[0].kept
    assert (made.result.judged_on, made.result.quality.samples) == ("held-out samples", 4)
    fitted = np.concatenate([sample.feeds["x"] for sample in seen])
    np.testing.assert_array_equal(fitted, np.delete(x, [4, 9, 14, 19], axis=0))


def test_synthetic_inputs_that_a_model_does_not_take_leave_it_as_it_was(make):
    text = """g (int64[2,3] i, float[2,3,64] x) => (float[2,3,48] y)
    <int64[1] one, float[4,64] table, float[64] gamma, float[64] beta, float[64,48] w>
    { j = Add(i, one)  k = Mul(j, j)  l = Mul(k, k)  e = Gather(table, l)  s = Add(e, x)
      n = LayerNormalization(s, gamma, beta)  y = MatMul(n, w) }"""
    made = make(parse(text, opset=17, **given("w"), one=np.array([5])))
    assert made.result.corrections == ()
    assert made.result.quality is None
    assert made.output.read_bytes() == made.plain.read_bytes()


@pytest.mark.parametrize("options", [{"target": "openvino"}, {"weight": "float16"}, {"samples": 4}])
def test_only_data_in_integers_is_smoothed_and_only_if_that_can_be_proven(make, options):
    made = make(normed(), **options)
    assert made.result.corrections == ()
    assert made.output.read_bytes() == made.plain.read_bytes()


def test_the_same_model_gives_the_same_bytes(make):
    first = make(normed()).output.read_bytes()
    assert make(normed()).output.read_bytes() == first
