"""What ONNX Runtime really runs, on cases whose answer is known."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import parse
from qdq_models import INT32_BIAS, NO_Q, RNG, conv, messages, named, subject

from calibrators.session import open_session
from onnxq.verify import legality
from onnxq.verify.onnxruntime import check, kernels, unfused

INTEGERS = """g (float[N, 8] x) => (float[N, 4] y) <float s, uint8 z, int8[8, 4] w, float t, int8 o> {
    q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
    y = MatMul (d, v)
}"""


def saved(path, text, **given):
    model = parse(text, **given)
    for node in model.graph:
        node.name = node.outputs[0].name
    ir.save(model, path)
    return path


def test_an_integer_kernel_is_found(tmp_path):
    path = saved(tmp_path / "m.onnx", INTEGERS, s=0.1, z=128, w=1, t=0.1, o=0)
    assert kernels(path)["y"] == "MatMulIntegerToFloat"
    assert unfused(path, {"y": "MatMul"}) == ()


def test_an_integer_kernel_that_took_in_its_bias_is_found(tmp_path):
    text = """g (float[1, 4, 8] x) => (float[1, 4, 4] y)
    <float s, uint8 z, int8[8, 4] w, float t, int8 o, int32[4] b, float u> {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
        m = MatMul (d, v) c = DequantizeLinear (b, u) y = Add (m, c)
    }"""
    path = saved(tmp_path / "m.onnx", text, s=0.1, z=128, w=1, t=0.1, o=0, b=3, u=0.01)
    assert "m" not in kernels(path)
    assert "QGemm" in kernels(path).values()
    assert unfused(path, {"m": "MatMul"}) == ()


@pytest.mark.parametrize(
    "body",
    [
        "y = MatMul (x, w)",
        "m = MatMul (x, w) y = Add (m, b)",
        "m = MatMul (x, w) a = Add (m, b) y = Relu (a)",
    ],
)
def test_a_float_kernel_is_found_whatever_it_was_fused_with(tmp_path, body):
    text = f"g (float[N, 8] x) => (float[N, 4] y) <float[8, 4] w, float[4] b> {{ {body} }}"
    path = saved(tmp_path / "m.onnx", text)
    name = "m" if body.startswith("m") else "y"
    assert unfused(path, {name: "MatMul"}) == (name,)


# --- The whole check: what runs in float, and why ---------------------------------------------

TANH_BEHIND = {"after": "y = Tanh (c)", "u": None, "p": None}
TWICE = """r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p) f = DequantizeLinear (r, u, p)
y = Add (e, f)"""
SHARED = """g (float[1,16,8,8] x) => (float[1,16,8,8] y)
<float s, int8 z, int8[16,16,1,1] w, float t, int8 o> {
    q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) v = DequantizeLinear (w, t, o)
    c = Conv (d, v) r = QuantizeLinear (c, s, z) e = DequantizeLinear (r, s, z) f = DequantizeLinear (r, s, z)
    k = DequantizeLinear (w, t, o) g = Conv (e, k) j = QuantizeLinear (g, s, z) l = DequantizeLinear (j, s, z)
    a = Add (l, f) b = QuantizeLinear (a, s, z) y = DequantizeLinear (b, s, z)
}"""

TRAPS = {
    "nothing after": ([NO_Q], "its output is a float graph output"),
    "a float reader": ([TANH_BEHIND], "no QuantizeLinear follows it"),
    "two readers": (
        [
            {
                "after": "r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p) h = Tanh (c) y = Add (e, h)"
            }
        ],
        "its output has more than one reader",
    ),
    "a Relu and a zero point": (
        [{"after": "h = Relu (c) r = QuantizeLinear (h, u, p) y = DequantizeLinear (r, u, p)"}],
        "a Relu or Clip comes before a QuantizeLinear whose zero point is not the lowest level",
    ),
    "another type after, for two": (
        [{"p": ("int8 p", 0), "after": TWICE}],
        "its input and its output have different integer types",
    ),
    "16 bits": (
        [{"z": ("uint16 z", 128), "p": ("uint16 p", 128)}],
        "the runtime has an integer kernel only for 8 bits",
    ),
    "a bias of 8 bits": ([INT32_BIAS, {"b": ("int8[16] b", 3)}], "its bias has 8 bits"),
    "a bias of another scale": (
        [INT32_BIAS, {"m": ("float[16] m", 0.01)}],
        "the scale of its bias is not input scale x weight scale",
    ),
}


@pytest.mark.parametrize(("changes", "reason"), TRAPS.values(), ids=TRAPS)
def test_why_a_convolution_runs_in_float(tmp_path, changes, reason):
    opset = 21 if "uint16" in str(changes) else 13
    found = check(subject(conv(*changes, opset=opset), "onnxruntime", tmp_path / "m.onnx"))
    assert found.status == "failed"
    assert found.counts["integer layers"] == 0
    assert "n_c: its Conv" in messages(found) or "n_y: its Conv" in messages(found)
    assert reason in messages(found)


def test_signed_activations_with_two_readers(tmp_path):
    weights = np.random.default_rng(0).integers(-100, 100, (16, 16, 1, 1))
    model = named(parse(SHARED, s=0.05, z=0, w=weights, t=0.01, o=0))
    found = check(subject(model, "onnxruntime", tmp_path / "m.onnx"))
    assert found.counts["integer layers"] < 2
    assert "several readers, so it stays signed" in messages(found)


@pytest.mark.parametrize("samples", [0, 3])
def test_a_right_model_passes(tmp_path, samples):
    found = check(subject(conv(INT32_BIAS), "onnxruntime", tmp_path / "m.onnx", samples=samples))
    assert (found.status, found.findings) == ("passed", ())
    assert found.counts == {"integer layers": 1, "layers": 1, "weighted": 1}
    assert ("3 samples" if samples else "outputs not compared") in found.summary


def test_outputs_that_change_are_a_finding(tmp_path):
    """ONNX Runtime fuses weights whose scales lie along the wrong axis as if it were the right one."""
    wrong = {"weights": "v = DequantizeLinear <axis = 1> (w, t, o)"}
    one = subject(conv(wrong), "onnxruntime", tmp_path / "m.onnx", samples=2)
    assert "optimizations change the outputs" in messages(check(one))
    assert "output channels lie along axis 0" in messages(legality.check(one))


FEW_BITS = {
    "w": ("int8[16,16,1,1] w", RNG.integers(-1, 2, (16, 16, 1, 1))),
    "t": ("float[16] t", 1.0),
    "s": ("float s", 1.5),
    "layer": "e = Conv (d, v, b) c = Clip (e, h, i)",
    "b": ("float[16] b", np.full(16, 0.7)),
    "h": ("float h", 0.0),
    "i": ("float i", 5.0),
    "u": ("float u", 0.02),
    "p": ("uint8 p", 0),
}
"""A step of its int32 bias would be 1.5, and its activations are so narrow that it runs in float."""

REPEATED = {
    "before": "q = QuantizeLinear (x, s, z) d = DequantizeLinear <axis = 1> (q, r1, r2)",
    "r1": ("float[16] r1", 1.5),
    "r2": ("uint8[16] r2", 128),
}


def test_biases_that_onnx_runtime_rounds_are_a_finding(tmp_path):
    """Its optimizer does so though the node runs in float all the same; a repeated scale keeps it from it."""
    rounded = subject(conv(FEW_BITS), "onnxruntime", tmp_path / "m.onnx", samples=3)
    assert "its float bias is rounded to int32" in messages(check(rounded), "warning")
    kept = subject(conv({**FEW_BITS, **REPEATED}), "onnxruntime", tmp_path / "n.onnx", samples=3)
    assert "its float bias is rounded" not in messages(check(kept), "warning")
    feeds = {"x": RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)}
    options = onnxruntime.SessionOptions()
    without = onnxruntime.InferenceSession(
        tmp_path / "m.onnx", options, disabled_optimizers=["WeightBiasQuantization"]
    )
    plain = open_session(tmp_path / "m.onnx", optimize=False).run(None, feeds)[0]
    assert np.allclose(without.run(None, feeds)[0], plain, atol=1e-5)
    assert not np.allclose(open_session(tmp_path / "m.onnx").run(None, feeds)[0], plain, atol=1e-5)
    assert np.allclose(open_session(tmp_path / "n.onnx").run(None, feeds)[0], plain, atol=1e-5)


def test_a_model_that_loads_but_does_not_run_is_refused(tmp_path):
    changes = {
        "before": "q = QuantizeLinear <axis = 1> (x, s, z) d = DequantizeLinear <axis = 1> (q, s, z)",
        "s": ("float[16] s", np.linspace(0.02, 0.04, 16)),
        "z": ("uint8[16] z", 128),
    }
    found = check(subject(conv(changes), "onnxruntime", tmp_path / "m.onnx", samples=1))
    assert (found.status, found.summary) == ("failed", "refuses the model")


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": ", float s", "s": None},
        {"o": ("int8[16] o", np.arange(16))},
        {"w": ("uint8[16,16,1,1] w", 7), "o": ("uint8[16] o", 100)},
        {"p": ("int8 p", 0)},
        {"z": ("int8 z", 5), "p": ("int8 p", 7)},
    ],
)
def test_what_legality_lets_pass_runs_in_integers(tmp_path, changes):
    one = subject(conv(changes), "onnxruntime", tmp_path / "m.onnx", samples=1)
    found = check(one)
    assert legality.check(one).status == found.status == "passed"
    assert found.counts["integer layers"] == 1


def test_what_only_costs_is_a_warning(tmp_path):
    after = """r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p) h = Tanh (e)
    f = QuantizeLinear (h, u, p) y = DequantizeLinear (f, u, p)"""
    found = check(subject(conv({"after": after}), "onnxruntime", tmp_path / "m.onnx"))
    assert found.status == "passed"
    assert "n_h: its Tanh runs in float on onnxruntime: it has no integer kernel" in messages(
        found, "warning"
    )


def test_operators_that_pass_values_on_need_the_same_scale(tmp_path):
    after = """r = QuantizeLinear (c, u, p) e = DequantizeLinear (r, u, p)
    h = MaxPool <kernel_shape = [1, 1]> (e) f = QuantizeLinear (h, {scale}, p) y = DequantizeLinear (f, {scale}, p)"""
    for scale, said in (("u", ""), ("s", "its output has another scale or zero point")):
        model = conv({"after": after.format(scale=scale)})
        found = check(subject(model, "onnxruntime", tmp_path / "m.onnx"))
        assert said in messages(found, "warning")
        assert bool(found.findings) == bool(said)


def test_a_model_that_does_not_load_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    found = check(replace(subject(conv(), "onnxruntime"), path=tmp_path / "m.onnx"))
    assert (found.status, found.summary) == ("failed", "refuses the model")
