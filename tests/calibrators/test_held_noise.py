"""Random operators give the same numbers in every model and session, and a batch has noise of its own."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from calibrators.collect import run_batch
from calibrators.data.samples import Sample
from calibrators.held_noise import draws, hold, noisy_outputs
from calibrators.session import open_session

X = np.zeros((40, 50), np.float32)

FLOATS = {
    "normal": "RandomNormal <shape = [40, 50], mean = 2.0, scale = 0.5{seed}> ()",
    "normal like": "RandomNormalLike <mean = 2.0, scale = 0.5{seed}> (x)",
    "uniform": "RandomUniform <shape = [40, 50], low = -1.0, high = 3.0{seed}> ()",
    "uniform like": "RandomUniformLike <low = -1.0, high = 3.0{seed}> (x)",
}
DRAWS = {
    **FLOATS,
    "coins": "Bernoulli <dtype = 1{seed}> (p)",
    "classes": "Multinomial <sample_size = 50{seed}> (p)",
}


def drawing(call, opset=15, **how):
    """A model that returns what ``call`` draws; it reads x, or p: 0.5 everywhere."""
    text = f"""g (float[N, M] x) => (y) <float[1] half = {{0.5}}>
    {{ p = Add(x, half)  y = {call.format(seed=how.pop("seed", ""))} }}"""
    model = parse(text, opset, check=False, **how)
    model.graph.outputs[0].name = "y"
    return model


def run(model, batch="a", feeds=None, **how):
    outputs = how.pop("outputs", ["y"])
    return run_batch(
        open_session(model, **how), outputs, Sample(batch, {"x": X} if feeds is None else feeds)
    )[0]


@pytest.mark.parametrize("seed", ["", ", seed = 3.0"])
@pytest.mark.parametrize("call", DRAWS.values(), ids=DRAWS)
def test_every_run_and_session_draws_the_same(call, seed, tmp_path):
    model = drawing(call, seed=seed)
    session = open_session(model)
    first, again = (run_batch(session, ["y"], Sample("a", {"x": X}))[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, run(model, optimize=False, threads=2))
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    written = path.read_bytes()
    np.testing.assert_array_equal(first, run(path))
    assert path.read_bytes() == written
    assert first.shape == X.shape


@pytest.mark.parametrize("call", DRAWS.values(), ids=DRAWS)
def test_types_and_shapes_stay(call):
    """Without `exact`, the session runs the operator itself."""
    model = drawing(call)
    held, free = (open_session(model, exact=exact) for exact in (True, False))
    one, other = (session.run(None, {"x": X})[0] for session in (held, free))
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("call", "mean", "deviation"),
    [
        (FLOATS["normal"], 2, 0.5),
        (FLOATS["normal like"], 2, 0.5),
        (FLOATS["uniform"], 1, 4 / 12**0.5),
        (FLOATS["uniform like"], 1, 4 / 12**0.5),
        (DRAWS["coins"], 0.5, 0.5),
        (DRAWS["classes"], 24.5, 50 / 12**0.5),
    ],
)
def test_numbers_have_their_distribution(call, mean, deviation):
    drawn = run(drawing(call))
    assert drawn.mean() == pytest.approx(mean, abs=4 * deviation / drawn.size**0.5)
    assert drawn.std() == pytest.approx(deviation, rel=0.1)


def test_likelier_classes_are_drawn_more_often():
    weights = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], np.float32))
    model = parse("g (float[B, C] x) => (int32[B, S] y) { y = Multinomial <sample_size = 2000> (x) }")
    drawn = run(model, feeds={"x": weights})
    shares = [np.bincount(row, minlength=3) / 2000 for row in drawn]
    np.testing.assert_allclose(shares, np.exp(weights), atol=0.04)


def test_each_batch_has_its_own_noise_wherever_its_file_lies():
    model = drawing(FLOATS["normal like"])
    here = run(model, "/data/here/x.npz[0] to /data/here/x.npz[3]")
    np.testing.assert_array_equal(here, run(model, "elsewhere/x.npz[0] to elsewhere/x.npz[3]"))
    assert abs(np.corrcoef(here.ravel(), run(model, "/data/here/x.npz[4]").ravel())[0, 1]) < 0.1


def test_each_operator_has_its_own_noise():
    model = parse(
        """g (float[N, M] x) => (float[N, M] y, float[N, M] z)
        { y = RandomNormalLike(x)  z = RandomNormalLike(x) }"""
    )
    y, z = run_batch(open_session(model), ["y", "z"], Sample("a", {"x": X}))
    assert abs(np.corrcoef(y.ravel(), z.ravel())[0, 1]) < 0.1


def test_a_part_of_a_model_and_a_changed_model_draw_the_same():
    whole = parse(
        """g (float[N, M] x) => (float[N, M] y)
        { a = RandomUniformLike(x)  b = RandomNormalLike(x)  c = Mul(a, b)  y = RandomNormalLike(c) }"""
    )
    part = parse("g (float[N, M] c) => (float[N, M] y) { y = RandomNormalLike(c) }")
    np.testing.assert_array_equal(run(whole), run(part, feeds={"c": X}))
    b = run_batch(open_session(whole, outputs=["b"]), ["b"], Sample("a", {"x": X}))[0]
    alone = parse("g (float[N, M] x) => (float[N, M] b) { q = Neg(x)  b = RandomNormalLike(q) }")
    np.testing.assert_array_equal(b, run(alone, outputs=["b"]))


BODIES = {
    "branch": """g (float[N, M] x) => (float[N, M] y) <bool yes = {1}>
    { y = If (yes) <then_branch = t () => (float[N, M] a) { a = RandomNormalLike(x) },
                    else_branch = e () => (float[N, M] b) { b = RandomNormalLike(x) }> }""",
    "loop": """g (float[N, M] x) => (float[N, M] y) <int64 times = {3}, bool yes = {1}>
    { y = Loop (times, yes, x) <body = l (int64 i, bool on, float[N, M] s) => (bool go, float[N, M] t)
        { go = Identity(on)  n = RandomUniformLike(s)  t = Add(s, n) }> }""",
}


@pytest.mark.parametrize("text", BODIES.values(), ids=BODIES)
def test_in_bodies(text):
    model = parse(text, 16)
    assert draws(model)
    np.testing.assert_array_equal(run(model), run(model))
    assert run(model).std() > 0.2


def test_in_functions():
    noisy = """<domain: "local", opset_import: ["" : 13]>
    noisy (a) => (b) { n = RandomNormalLike(a)  b = Add(a, n) }"""
    model = parse(
        "g (float[N, M] x) => (float[N, M] y) { h = local.noisy(x)  y = local.noisy(h) }", functions=noisy
    )
    assert draws(model)
    drawn = run(model)
    np.testing.assert_array_equal(drawn, run(model))
    assert drawn.std() == pytest.approx(2**0.5, rel=0.1)  # two calls, two draws


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 22])
def test_any_opset(opset):
    model = drawing(FLOATS["normal like"], opset)
    np.testing.assert_array_equal(run(model), run(drawing(FLOATS["normal like"], 13)))


def test_old_files_list_weights_as_inputs():
    """So that weights stay constants for ONNX Runtime's fusions."""
    model = drawing(FLOATS["normal like"], 9, ir_version=3)
    model.graph.inputs.append(model.graph.initializers["half"])
    session = open_session(model)
    assert [value.name for value in session.get_overridable_initializers()] == ["held_noise/start"]
    np.testing.assert_array_equal(run(model), run(drawing(FLOATS["normal like"])))


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_dropout_in_training(kind):
    text = f"""g ({kind}[N, M] x, bool on) => ({kind}[N, M] y, bool[N, M] kept) <{kind} ratio>
    {{ y, kept = Dropout(x, ratio, on) }}"""
    session, ones = (
        open_session(parse(text, ratio=0.25)),
        np.ones_like(X, {"float": "float32"}.get(kind, kind)),
    )
    for training in (True, False):
        feeds = {"x": ones, "on": np.array(training)}
        y, kept = run_batch(session, ["y", "kept"], Sample("a", feeds))
        np.testing.assert_allclose(y, np.where(kept, 4 / 3 if training else 1, 0), rtol=1e-3)
        assert kept.mean() == (pytest.approx(0.75, abs=0.05) if training else 1)
        assert y.dtype == ones.dtype


@pytest.mark.parametrize(
    ("nodes", "drawn"),
    [
        ("y = Dropout(x)", False),
        ("y = Dropout(x, ratio, off)", False),
        ("y = Dropout(x, ratio, on)", True),
        ("c = Constant<value = bool {1}>() y = Dropout(x, ratio, c)", True),
    ],
)
def test_dropout_at_inference_is_not_random(nodes, drawn):
    text = (
        f"g (float[N, M] x) => (float[N, M] y) <float ratio, bool on = {{1}}, bool off = {{0}}> {{ {nodes} }}"
    )
    assert draws(parse(text, ratio=0.5)) is drawn


def test_outputs_that_depend_on_random_numbers():
    noisy = """<domain: "local", opset_import: ["" : 16]> noisy (a) => (b) { b = RandomNormalLike(a) }"""
    text = """g (float[N, M] x) => (float[N, M] p, float[N, M] q, float[N, M] r, float[N, M] s, float[N, M] u)
    <bool yes = {1}>
    { p = Relu(x)  h = RandomUniformLike(x)  q = Add(p, h)  r = local.noisy(x)
      s = If(yes) <then_branch = t () => (float[N, M] c) { c = Neg(q) },
                   else_branch = e () => (float[N, M] d) { d = Neg(x) }>
      u = If(yes) <then_branch = v () => (float[N, M] f) { f = local.noisy(x) },
                   else_branch = w () => (float[N, M] g) { g = Neg(x) }> }"""
    assert noisy_outputs(parse(text, 16, functions=noisy)) == {"q", "r", "s", "u"}


@pytest.mark.parametrize("kind", ["float16", "double"])
def test_the_type_of_an_inner_tensor_is_found(kind):
    model = parse(
        f"g ({kind}[N, M] x) => ({kind}[N, M] y) {{ h = Neg(x)  n = RandomNormalLike(h)  y = Add(h, n) }}"
    )
    drawn = run(model, feeds={"x": X.astype(kind)})
    assert drawn.dtype == kind
    assert drawn.std() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("shape", [(), (0, 3), (3, 0)])
def test_scalars_and_empty_tensors(shape):
    model = parse("g (float[N, M] x) => (float[N, M] y) { y = RandomNormalLike(x) }", 14)
    model.graph.inputs[0].shape = model.graph.outputs[0].shape = None
    assert run(model, feeds={"x": np.zeros(shape, np.float32)}).shape == shape


def test_a_model_without_random_operators_is_the_same_object():
    model = parse("g (float[N, M] x) => (float[N, M] y) { y = Relu(x) }")
    assert hold(model) is model
