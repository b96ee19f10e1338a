"""Models whose outputs cannot be compared value by value: noise, selections, pictures of bytes."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.pipelines.compare import compare_files
from onnxq.pipelines.dynamic import quantize_dynamic
from onnxq.pipelines.sensitivity import rank
from onnxq.pipelines.static import quantize_static

# --- models that draw random numbers --------------------------------------------------------------

NOISE = {
    "like": "z = RandomNormalLike(m)",
    "seed": "z = RandomNormalLike<seed = 4.0>(m)",
    "shape": "r = RandomUniform<shape = [1, 8, 1], low = -1.7, high = 1.7>() z = Add(r, zeros)",
    "coins": "p = Sigmoid(m) z = Bernoulli<dtype = 1>(p)",
    "branch": """z = If(yes) <then_branch = t () => (float[N, 8, L] a) { a = RandomNormalLike(m) },
        else_branch = e () => (float[N, 8, L] b) { b = RandomUniformLike(m) }>""",
    "function": "z = local.noisy(m)",
}
NOISY = """<domain: "local", opset_import: ["" : 17]> noisy (a) => (b) { b = RandomNormalLike(a) }"""


def noisy(path, noise):
    graph = f"""g (float[N, 8, L] x, bool yes) => (float[N, 4, L] y)
    <float[8, 8, 3] w, float[4, 8, 3] v, float[1] zeros>
    {{ h = Conv<pads = [1, 1]>(x, w)  m = Relu(h)  {NOISE[noise]}
       s = Add(m, z)  d = Conv<pads = [1, 1]>(s, v)  y = Tanh(d) }}"""
    model = parse(graph, 17, functions=NOISY if noise == "function" else "", zeros=[0.0])
    ir.save(model, path)
    return path


def sentences(count=40):
    rng = np.random.default_rng(5)
    return [
        {"x": rng.standard_normal((1, 8, 30)).astype(np.float32), "yes": np.array(number % 2 > 0)}
        for number in range(count)
    ]


def random_nodes(path):
    return [
        (node.op_type, sorted(node.attributes))
        for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph)
        if node.op_type.startswith(("Random", "Bernoulli"))
    ]


@pytest.mark.parametrize("noise", NOISE)
def test_noise_is_no_error_of_quantization(noise, tmp_path):
    source, written = noisy(tmp_path / "m.onnx", noise), tmp_path / "int8.onnx"
    result = quantize_static(source, written, sentences(), QuantConfig(goal="sqnr>=20", threads=1))
    assert result.quality.sqnr > 20
    assert list(result.plan.integer_nodes.values()).count("Conv") == 2
    assert not [text for text in result.warnings if "far from" in text]
    if noise != "function":  # functions are inlined
        assert random_nodes(written) == random_nodes(source)
    again = tmp_path / "again.onnx"
    quantize_static(source, again, sentences(), QuantConfig(goal="sqnr>=20", threads=2))
    assert again.read_bytes() == written.read_bytes()


def test_noise_elsewhere(tmp_path):
    """In dynamic mode, `compare` and `sensitivity`."""
    source, data = noisy(tmp_path / "m.onnx", "like"), tmp_path / "data.npz"
    np.savez(data, x=np.concatenate([sample["x"] for sample in sentences()]), yes=np.array(True))
    config = QuantConfig(data=str(data), threads=1)
    ranking = rank(source, config)
    assert all(one.quality.sqnr > 20 for one in ranking)
    quantize_static(source, tmp_path / "static.onnx", config=config)
    quality, _ = compare_files(source, tmp_path / "static.onnx", config)
    assert quality.sqnr > 20
    dynamic = QuantConfig(data=str(data), threads=1, mode="dynamic", include=("op:Conv",))
    assert quantize_dynamic(source, tmp_path / "dynamic.onnx", dynamic).quality.sqnr > 20


# --- models that select -----------------------------------------------------------------------------

SELECTING = """g (float[1, 3, 32, 32] x) => ({outputs})
    <float[8, 3, 3, 3] w, float[4, 8, 1, 1] wb, float[2, 8, 1, 1] ws, float[8, 8] m, int64[3] flat, int64[1] few,
     float[1] most, float[1] least, int64[1] zero, int64[1] one, int64[1] two, int64[1] last>
    {{ c = Conv<pads = [1, 1, 1, 1], strides = [4, 4]>(x, w)  r = Relu(c)
       b = Conv(r, wb)  fb = Reshape(b, flat)  boxes = Transpose<perm = [0, 2, 1]>(fb)
       s = Conv(r, ws)  fs = Reshape(s, flat)  scores = Sigmoid(fs)
       best = ReduceMax<axes = [1], keepdims = 0>(scores)
       fr = Reshape(r, flat)  features = Transpose<perm = [0, 2, 1]>(fr)  {nodes} }}"""
CONSTANTS = {"flat": [0, 0, -1], "few": [8], "most": [0.6], "zero": [0], "one": [1], "two": [2], "last": [-1]}
SELECTIONS = {
    "nms": (
        "int64[n, 3] sel, float[n, 4] y",
        """sel = NonMaxSuppression(boxes, scores, few, most, least)  i = Gather<axis = 1>(sel, two)
           j = Squeeze(i, one)  all = Squeeze(boxes, zero)  y = Gather(all, j)""",
    ),
    "layer behind": (
        "float[n, 8] y",
        """mask = Greater(best, least)  z = NonZero(mask)  t = Transpose(z)
           rows = GatherND(features, t)  h = MatMul(rows, m)  y = Tanh(h)""",
    ),
    "compress": (
        "float[n] v, float[n, 8] y",
        """flags = Greater(best, least)  mask = Squeeze(flags, zero)  f = Squeeze(features, zero)
           rows = Compress<axis = 0>(f, mask)  y = MatMul(rows, m)
           p = Squeeze(best, zero)  v = Compress(p, mask)""",
    ),
    "best": (
        "float[1, 8] v, int64[1, 8] i, float[1, 8, 4] y",
        "v, i = TopK(best, few)  u = Unsqueeze(i, last)  y = GatherND<batch_dims = 1>(boxes, u)",
    ),
    "classes": (
        "int64[n] u, float[1, 64, 8] y",
        "a = ArgMax<axis = 1, keepdims = 0>(scores)  u = Unique(a)  y = MatMul(features, m)",
    ),
}


def selecting(path, name, least):
    outputs, nodes = SELECTIONS[name]
    text = SELECTING.format(outputs=outputs, nodes=nodes)
    rng = np.random.default_rng(3)
    weights = {"w": (8, 3, 3, 3), "wb": (4, 8, 1, 1), "ws": (2, 8, 1, 1), "m": (8, 8)}
    given = {key: 0.4 * rng.standard_normal(shape) for key, shape in weights.items()}
    ir.save(parse(text, 13, check=False, least=[least], **CONSTANTS, **given), path)
    return path


def pictures(path, count=40):
    np.savez(path, x=np.random.default_rng(4).standard_normal((count, 3, 32, 32)).astype(np.float32))
    return str(path)


EVERYTHING = ("bias", "center", "equalize", "ranges", "rounding", "full-bias")


@pytest.mark.parametrize("least", [0.6, 0.97])  # many rows, and often none at all
@pytest.mark.parametrize("name", SELECTIONS)
def test_the_number_of_rows_may_depend_on_the_values(name, least, tmp_path, recwarn):
    source, data = selecting(tmp_path / "m.onnx", name, least), pictures(tmp_path / "data.npz")
    config = QuantConfig(data=data, threads=1, correct=EVERYTHING, weight="int4", floor=0)
    few_bits = quantize_static(source, tmp_path / "int4.onnx", config=config)
    result = quantize_static(source, tmp_path / "int8.onnx", config=QuantConfig(data=data, threads=1))
    assert few_bits.quality.sqnr < result.quality.sqnr
    assert not [text for text in result.warnings if "other shapes" in text]
    assert rank(source, QuantConfig(data=data, threads=1))
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


@pytest.mark.parametrize("name", ["nms", "layer behind", "best"])
def test_a_goal_keeps_nothing_in_float_for_the_order_of_rows(name, tmp_path):
    source, data = selecting(tmp_path / "m.onnx", name, 0.6), pictures(tmp_path / "data.npz")
    config = QuantConfig(data=data, threads=1, goal="sqnr>=20")
    result = quantize_static(source, tmp_path / "int8.onnx", config=config)
    assert result.quality.sqnr > 20
    assert not result.search.chosen.floats
    if name == "nms":
        quality, _ = compare_files(source, tmp_path / "int8.onnx", QuantConfig(data=data, threads=1))
        assert quality.sqnr > 20


def test_a_poor_detector_is_told(tmp_path):
    """One channel is much larger than the others, and a gate keeps it from being scaled."""
    text = """g (float[1, 3, 32, 32] x) => (float[1, 8, 4] y)
    <float[8, 3, 3, 3] w, float[1, 8, 1, 1] large, float[4, 8, 1, 1] wb, int64[3] flat, int64[1] few, int64[1] last> {
       c = Conv<pads = [1, 1, 1, 1], strides = [4, 4]>(x, w)  g = Mul(c, large)  s = Sigmoid(g)  r = Mul(g, s)
       b = Conv(r, wb)  fb = Reshape(b, flat)  boxes = Transpose<perm = [0, 2, 1]>(fb)
       best = ReduceMax<axes = [2], keepdims = 0>(boxes)
       v, i = TopK(best, few)  u = Unsqueeze(i, last)  y = GatherND<batch_dims = 1>(boxes, u) }"""
    large = np.where(np.arange(8) == 0, 3e3, 1.0).reshape(1, 8, 1, 1)
    rng = np.random.default_rng(3)
    given = {
        "large": large,
        "wb": rng.standard_normal((4, 8, 1, 1)) / large,
        "w": rng.standard_normal((8, 3, 3, 3)),
    }
    constants = {"flat": [0, 0, -1], "few": [8], "last": [-1]}
    ir.save(parse(text, 13, check=False, **constants, **given), tmp_path / "m.onnx")
    config = QuantConfig(data=pictures(tmp_path / "data.npz"), threads=1)
    result = quantize_static(tmp_path / "m.onnx", tmp_path / "int8.onnx", config=config)
    assert [text for text in result.warnings if "output 'y' is far from the float model's" in text]


# --- pictures of bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "number"), [("uint8", 2), ("int32", 6)])
@pytest.mark.parametrize("poor", [False, True])
def test_a_picture_of_integers_is_measured(kind, number, poor, tmp_path):
    text = f"""g (float[1, 3, 32, 32] x) => ({kind}[1, 32, 32, 3] y)
    <float[8, 3, 3, 3] w, float[1, 8, 1, 1] large, float[3, 8, 1, 1] v, float[3] b, float low, float high> {{
       c = Conv<pads = [1, 1, 1, 1]>(x, w)  g = Mul(c, large)  s = Sigmoid(g)  r = Mul(g, s)
       p = Conv(r, v, b)  l = Clip(p, low, high)  q = Round(l)  i = Cast<to = {number}>(q)
       y = Transpose<perm = [0, 2, 3, 1]>(i) }}"""
    large = np.where(np.arange(8) == 0, 3e3 if poor else 1.0, 1.0).reshape(1, 8, 1, 1)
    rng = np.random.default_rng(3)
    given = {
        "w": 0.4 * rng.standard_normal((8, 3, 3, 3)),
        "v": 20 * rng.standard_normal((3, 8, 1, 1)) / large,
    }
    model = parse(text, 13, check=False, large=large, b=[128.0] * 3, low=0.0, high=255.0, **given)
    ir.save(model, tmp_path / "m.onnx")
    data = pictures(tmp_path / "data.npz")
    result = quantize_static(
        tmp_path / "m.onnx", tmp_path / "int8.onnx", config=QuantConfig(data=data, threads=1)
    )
    assert bool([text for text in result.warnings if "output 'y' is far from" in text]) is poor
    assert result.quality.agreement is None
    if not poor:
        config = QuantConfig(data=data, threads=1, goal="sqnr>=20")
        assert quantize_static(tmp_path / "m.onnx", tmp_path / "int8.onnx", config=config).quality.sqnr >= 20
