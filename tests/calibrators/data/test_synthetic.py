"""Made-up inputs: right types and shapes, ids within their tables, sizes that run."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from calibrators.data.batching import batches
from calibrators.data.samples import input_specs
from calibrators.data.synthetic import id_bounds, synthetic_samples, token_sample
from calibrators.data.synthetic.size_sums import known_sums
from calibrators.errors import CalibrationError
from onnxq.graph.passes.shapes import InferShapesPass


def model(text, opset=17):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]> {text}'))


def made(m, count=2, seed=0):
    return list(synthetic_samples(m, input_specs(m), count, seed))


def run(m, sample):
    session = ort.InferenceSession(ir.to_proto(m).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(sample.feeds))


EMBED = """g (int64[N, L] ids, int32[N, L] kinds, int64[N, L] mask) => (float[N, L, 4] y)
<float[7, 4] words = {WORDS}, float[2, 4] types = {1, 2, 3, 4, 5, 6, 7, 8}, int64[1] two = {2}> {
    a = Gather <axis = 0> (words, ids)
    k = Cast <to = 7> (kinds)
    u = Unsqueeze (k, two)
    s = Squeeze (u, two)
    b = Gather (types, s)
    m = Cast <to = 1> (mask)
    mu = Unsqueeze (m, two)
    ab = Add (a, b)
    y = Mul (ab, mu)
}""".replace("WORDS", ", ".join(["1"] * 28))


def test_ids_stay_within_the_tables_they_feed():
    m = model(EMBED)
    assert id_bounds(m) == {"ids": 7, "kinds": 2}
    samples = made(m, 50)
    for name, rows, dtype in (("ids", 7, "int64"), ("kinds", 2, "int32")):
        values = np.concatenate([s.feeds[name] for s in samples])
        assert values.dtype == np.dtype(dtype)
        assert set(values.ravel()) == set(range(rows))
    assert all((s.feeds["mask"] == 1).all() for s in samples)
    run(m, samples[0])


def test_the_smallest_table_bounds_and_negative_axes_count():
    m = model("""g (int64[3] i, float[5, 9] x) => (float[5, 3] y, float[3, 9] z)
        { y = Gather <axis = -1> (x, i)  z = Gather (x, i) }""")
    assert id_bounds(m) == {"i": 5}


def test_values_that_are_changed_on_the_way_are_not_bounded():
    m = model("""g (int64[3] i) => (float[3, 1] y) <float[9, 1] t = {1,2,3,4,5,6,7,8,9}, int64 two = {2}>
        { j = Add (i, two)  y = Gather (t, j) }""")
    assert id_bounds(m) == {}
    assert made(m)[0].feeds["i"].tolist() == [1, 1, 1]


def test_every_type():
    m = model("""g (float[N, 3, 32, 32] a, float16[N, 5] b, double[N] c, bool[N, 2] d, uint8[N, 8, 8, 3] e,
        int32 f) => (float[N, 3, 32, 32] y) { y = Identity (a) }""")
    feeds = made(m)[0].feeds
    assert {n: a.dtype.name for n, a in feeds.items()} == {
        "a": "float32",
        "b": "float16",
        "c": "float64",
        "d": "bool",
        "e": "uint8",
        "f": "int32",
    }
    assert feeds["d"].all()
    assert feeds["e"].shape == (1, 8, 8, 3)
    assert feeds["e"].std() > 20
    assert feeds["f"].shape == ()
    run(m, made(m)[0])


def test_pictures_are_smooth_and_standardised():
    m = model("g (float[N, 3, H, W] x) => (float[N, 3, H, W] y) { y = Relu (x) }")
    x = made(m)[0].feeds["x"]
    assert x.shape == (1, 3, 224, 224)
    assert abs(x.mean()) < 1e-3
    assert x.std() == pytest.approx(1, abs=1e-3)
    neighbours = np.corrcoef(x[..., 1:].ravel(), x[..., :-1].ravel())[0, 1]
    assert 0.6 < neighbours < 0.9
    assert np.abs(np.diff(x, axis=1)).mean() > 0.5, "channels differ"


def test_same_seed_same_values():
    m = model("g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    source = synthetic_samples(m, input_specs(m), 3, 5)
    assert source.total == 3
    first, again = ([s.feeds["x"] for s in source] for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, [s.feeds["x"] for s in made(m, 3, 6)])


def test_one_symbol_has_one_size_and_expressions_are_worked_out():
    m = model("""g (float[batch, L, 3] a, float[batch, L] b, float[batch, ?] c) => (float[batch, L, 3] y)
        { y = Identity (a) }""")
    m.graph.inputs[2].shape = ir.Shape(["batch", "L + 1"])
    feeds = made(m)[0].feeds
    assert [feeds[n].shape for n in "abc"] == [(1, 16, 3), (1, 16), (1, 17)]


@pytest.mark.parametrize(
    ("free", "shape"),
    [
        ("3, H, W", (3, 224, 224)),
        ("3, H, W", (3, 32, 32)),
        ("3, H, W", (3, 640, 640)),
        ("L", (128,)),
        ("L", (1,)),
    ],
)
def test_sizes_are_tried_until_one_runs(free, shape):
    total = math.prod(shape)
    m = model(f"""g (float[1, {free}] x) => (float[1, {total}] y) <int64[2] s = {{1, {total}}}>
        {{ y = Reshape (x, s) }}""")
    sample = made(m)[0]
    assert sample.feeds["x"].shape == (1, *shape)
    run(m, sample)


CACHE = """g (float[batch,NEW,8] x, float[batch,4,PAST,8] past, float[batch,TOTAL] mask) => (float[OUT] present, float[A,B,C,D] y)
<int64[4] heads = {0, 0, 4, 8}, int64[3] rows = {0, 0, 4}, int64[1] one = {1}, int64[1] last = {3}> {
    w = Concat <axis = 2> (x, x, x, x)
    h = Reshape (w, heads)
    k = Transpose <perm = [0, 2, 1, 3]> (h)
    present = Concat <axis = -2> (past, k)
    m = Unsqueeze (mask, one)
    n = Unsqueeze (m, last)
    y = Mul (present, n)
}"""
"""A cache, what is appended to it, and a mask for both."""


@pytest.mark.parametrize(
    ("names", "out"),
    [
        (("S", "P", "T"), "batch,4,T,8"),
        (("T", "S", "P"), "batch,4,P,8"),
        (("s0", "s1", "s2"), "batch,4,s2,8"),
        (("s0", "s1", "s2"), "A,B,C,D"),
        (("sequence_length", "past_sequence_length", "total_sequence_length"), "A,B,C,D"),
    ],
)
@pytest.mark.parametrize("inferred", [True, False])
def test_a_size_may_be_the_sum_of_two_others(names, out, inferred):
    text = CACHE.replace("OUT", out)
    for old, name in zip(("NEW", "PAST", "TOTAL"), names, strict=True):
        text = text.replace(old, name)
    m = model(text)
    if inferred:
        InferShapesPass()(m)
    for sample in made(m):
        shapes = {name: array.shape for name, array in sample.feeds.items()}
        assert shapes["mask"][1] == shapes["x"][1] + shapes["past"][2]
        assert shapes["past"][2] > 0
        run(m, sample)


@pytest.mark.parametrize("out", ["batch,4,TOTAL,8", "A,B,C,D"])
def test_a_cache_that_grows_by_one(out):
    text = CACHE.replace("NEW", "1").replace("OUT", out)
    m = model(text)
    InferShapesPass()(m)
    (sample,) = made(m, 1)
    run(m, sample)
    assert sample.feeds["mask"].shape[1] == sample.feeds["past"].shape[2] + 1


def test_caches_have_one_length_whatever_their_names_say():
    m = model("""g (float[N,S,16] x, int64[M,T] mask, float[N,2,P0,8] a, float[N,2,P1,8] b)
    => (float[N,2,Q0,8] c, float[N,2,Q1,8] d) <int64[4] heads = {0, 0, 2, 8}, int64[2] one = {1, 3}> {
        h = Reshape (x, heads) k = Transpose <perm = [0, 2, 1, 3]> (h)
        c = Concat <axis = 2> (a, k) e = Add (a, b) f = Concat <axis = 2> (b, k) d = Identity (f)
        n = Unsqueeze (mask, one) o = Cast <to = 1> (n) p = Mul (c, o)
    }""")
    (sample,) = made(m, 1)
    shapes = {name: array.shape for name, array in sample.feeds.items()}
    assert shapes == {"x": (1, 16, 16), "mask": (1, 32), "a": (1, 2, 16, 8), "b": (1, 2, 16, 8)}
    assert (
        abs(np.corrcoef(sample.feeds["a"][0, 0, :-1].ravel(), sample.feeds["a"][0, 0, 1:].ravel())[0, 1])
        < 0.3
    )


def test_no_size_that_runs_asks_for_data():
    m = model("""g (float[1, L] x) => (float[1, 7] y) <int64[2] s = {1, 7}> { y = Reshape (x, s) }""")
    with pytest.raises(CalibrationError, match=r"'x' \(float32 \[1, L\]\).*--data.*Reshape"):
        made(m)


@pytest.mark.parametrize("kind", ["string[2]", "float[]", "complex64[2]"])
def test_inputs_that_cannot_be_synthesized(kind):
    m = model(f"g ({kind} x) => ({kind} y) {{ y = Identity (x) }}")
    with pytest.raises(CalibrationError, match=r"input 'x'.*--data"):
        made(m)


def test_a_fixed_batch_is_made_whole(caplog):
    m = model("g (float[4, 3] x) => (float[4, 3] y) { y = Relu (x) }")
    samples = synthetic_samples(m, input_specs(m), 8, 0)
    found = list(batches(samples, input_specs(m), 1))
    assert [(b.feeds["x"].shape, b.count) for b in found] == [((4, 3), 4)] * 2
    assert caplog.text == ""


def test_a_model_without_inputs():
    m = model("g () => (float[2] y) <float[2] w = {1, 2}> { y = Identity (w) }")
    assert [s.feeds for s in made(m)] == [{}, {}]


@pytest.mark.parametrize("module", ["open", "images", "preprocess", "synthetic"])
def test_importing_brings_in_no_runtime(module):
    code = f"import sys, calibrators.data.{module}; sys.exit('onnxruntime' in sys.modules or 'torch' in sys.modules)"
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_concat_of_contradicting_ranks_tells_no_sizes():
    values = [ir.Value(name="a", shape=ir.Shape(["p"])), ir.Value(name="b", shape=ir.Shape(["q", 2]))]
    node = ir.node("Concat", values, {"axis": 1})
    node.outputs[0].name, node.outputs[0].shape = "c", ir.Shape(["t", 3])
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports={"": 17})
    assert known_sums(ir.Model(graph, ir_version=8), ["p", "q", "t"]) == {}


def test_token_ids_come_with_empty_caches():
    m = model("""g (int64[N,S] ids, int64[N,T] mask, float[N,2,P,8] past) => (float[N,S,4] y, float[N,2,T,8] present)
    <float[20,4] t, float[N,2,S,8] k> { y = Gather(t, ids)  present = Concat<axis=2>(past, k) }""")
    sample = token_sample(m, input_specs(m), 24, (0, 1))
    assert sample is not None
    shapes = {name: array.shape for name, array in sample.feeds.items()}
    assert shapes == {"ids": (1, 24), "mask": (1, 24), "past": (1, 2, 0, 8)}
    assert (sample.feeds["mask"] == 1).all()
    assert 0 <= sample.feeds["ids"].min() < sample.feeds["ids"].max() < 20


def test_no_token_ids_without_a_table():
    m = model("g (int64[N,S] ids) => (int64[N,S] y) { y = Neg(ids) }")
    assert token_sample(m, input_specs(m), 24, (0, 1)) is None
