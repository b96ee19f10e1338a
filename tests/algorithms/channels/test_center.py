"""Whatever offsets the channels get, the float model computes what it did; one-sided tensors gain a bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from benches import bench_of
from channel_graphs import ATTENTION, CONVOLUTIONS, image, prepared
from graphs import assert_same_outputs, op_counts, parse

from onnxq.algorithms.channels.center import center, middles, shifted
from onnxq.algorithms.channels.labels import find_channels
from onnxq.algorithms.channels.shift_rules import SHIFTS, shifts
from onnxq.algorithms.weights.bias_correction import correct_biases
from onnxq.graph.passes import simplify

LAST = "y = Conv(t, w2)"

MOVED = {
    **{
        kind: CONVOLUTIONS[kind]
        for kind in (
            *("relu", "residual", "constant added", "number added", "global pool", "mean", "flattened"),
            *("split and joined", "joined along space", "joined with a constant", "instance normalization"),
        )
    },
    "without a bias": ("float[8,8,1,1] d", f"r = Relu(a) c = Conv(r, d) t = Relu(c) {LAST}"),
    "clipped": ("float low, float six", f"t = Clip(a, low, six) {LAST}"),
    "clipped above": ("float six", f't = Clip(a, "", six) {LAST}'),
    "grouped, unpadded": ("float[8,4,1,1] d", f"r = Relu(a) t = Conv<group=2>(r, d) {LAST}"),
    "unpadded by its type": ("", 't = Relu(a) y = Conv<auto_pad="SAME_UPPER">(t, w2)'),
    "pools": (
        "",
        f"p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) t = AveragePool<kernel_shape=[2,2]>(p) {LAST}",
    ),
    "transposed before a product": (
        "float[8,4] m, float[4] bm",
        "r = Relu(a) t = Transpose<perm=[0,2,3,1]>(r) c = MatMul(t, m) y = Add(c, bm)",
    ),
    "sum of two branches": (
        "float[8,8,1,1] d, float[8] bd, float[8,8,1,1] e",
        f"c = Conv(a, d, bd) s = Add(a, c) f = Conv(s, e) t = Add(f, s) {LAST}",
    ),
    "the same weights twice": ("", "t = Relu(a) c = Conv(t, w2) d = Conv(a, w2) y = Add(c, d)"),
}
GIVEN = {"clipped": {"low": -1.0, "six": 6.0}, "clipped above": {"six": 1.0}}


def moved(model: ir.Model, padded: tuple[str, ...] = (), seed: int = 0):
    """The model with random offsets for all channels that may have some."""
    channels = find_channels(model, shifts(padded))
    offsets = np.random.default_rng(seed).normal(size=channels.count)
    offsets[0] = 0
    return shifted(model, channels, offsets, padded), channels


@pytest.mark.parametrize("kind", MOVED)
def test_any_offsets_leave_the_outputs_as_they_are(kind: str) -> None:
    model = prepared(image(*MOVED[kind]), **GIVEN.get(kind, {}))
    changed, channels = moved(model)
    assert channels.count > 1
    assert_same_outputs(model, changed, tolerance=1e-4)
    name = "bk" if "normalization" in kind else "b1"
    before, after = (m.graph.initializers[name].const_value.numpy() for m in (model, changed))
    assert not np.allclose(before, after)


STAYS = {
    "padded": ("float[8,8,3,3] d", f"r = Relu(a) t = Conv<pads=[1,1,1,1]>(r, d) {LAST}"),
    "padded by its type": ("float[8,8,3,3] d", f'r = Relu(a) t = Conv<auto_pad="SAME_UPPER">(r, d) {LAST}'),
    "transposed convolution": ("float[8,8,2,2] d", f"r = Relu(a) t = ConvTranspose(r, d) {LAST}"),
    "counted zeros": (
        "",
        f"t = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(a) {LAST}",
    ),
    "leaky": ("", f"t = LeakyRelu(a) {LAST}"),
    "multiplied": ("float[8,1,1] k", f"t = Mul(a, k) {LAST}"),
    "gated": ("", f"s = Sigmoid(a) t = Mul(a, s) {LAST}"),
    "summed": ("", "t = ReduceSum<keepdims=1>(a, axes) y = Conv(t, w2)"),
}


@pytest.mark.parametrize("kind", STAYS)
def test_what_nobody_can_make_up_for_stays(kind: str) -> None:
    text = image(*STAYS[kind])
    if kind == "summed":
        text = text.replace("float[4,8,1,1] w2", "float[4,8,1,1] w2, int64[2] axes")
    model = prepared(text, **({"axes": [2, 3]} if kind == "summed" else {}))
    changed, channels = moved(model)
    assert not channels.of("a").any()
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_a_graph_output_stays() -> None:
    text = image("", f"t = Relu(a) {LAST}").replace("=> (float y)", "=> (float y, float[N,8,8,8] a)")
    changed, channels = moved(prepared(text))
    assert not channels.of("a").any()
    assert_same_outputs(prepared(text), changed, tolerance=1e-4)


def test_values_pass_through_attention() -> None:
    text = ATTENTION.replace("int64[3] join>", "int64[3] join, int64[1] one>")
    model = prepared(text, split=[0, 0, 2, 4], join=[0, 0, 8], one=[1])
    assert_same_outputs(model, moved(model)[0], tolerance=1e-4)


def test_a_normalization_gives_offsets_that_products_and_sums_take() -> None:
    text = """g (float[N,5,8] x) => (float[N,5,8] y)
    <float[8] k, float[8] b, float[8,8] w, float[8] bw, float[8,8] v, float[8] bv> {
      t = LayerNormalization(x, k, b)
      c = MatMul(t, w) d = Add(c, bw) s = Add(t, d) n = LayerNormalization(s, k, b)
      e = MatMul(n, v) y = Add(e, bv)
    }"""
    model = prepared(text, opset=17)
    changed, channels = moved(model)
    assert channels.of("t").any()
    assert channels.of("n").any()
    assert not channels.of("s").any(), "a normalization takes none"
    assert_same_outputs(model, changed, tolerance=1e-4)


@pytest.mark.parametrize("pads", ["[1,1,1,1]", "[0,2,1,0]"])
def test_a_pad_takes_the_place_of_zeros(pads: str) -> None:
    text = image(
        "float[8,1,3,3] d, float[8] bd", f"r = Relu(a) t = Conv<group=8, pads={pads}>(r, d, bd) {LAST}"
    )
    model = prepared(text)
    name = next(node.name for node in model.graph if node.attributes.get_int("group", 1) == 8)
    changed, channels = moved(model, (name,))
    assert len(np.unique(channels.of("r"))) == 1
    assert op_counts(changed)["Pad"] == 1
    assert_same_outputs(model, changed, tolerance=1e-4)


def test_the_middle_of_all_that_share_an_offset() -> None:
    model = prepared(image("", f"r = Relu(a) t = MaxPool<kernel_shape=[2,2]>(r) {LAST}"))
    channels = find_channels(model, SHIFTS)
    label = channels.of("t").reshape(-1)[0]
    ends = {"r": (np.zeros(1), np.full(1, 4.0)), "t": (np.ones(1), np.full(1, 8.0))}
    offsets = middles(channels, ends)
    assert offsets[label] == 4.0
    assert not np.delete(offsets, label).any(), "nothing is known of the others"


NET = """g (float[N,3,12,12] x) => (float[N,10] y)
<float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] wd, float[16] bd, float[16,16,1,1] w2, float[16] b2,
 float[16,10] m, float[10] bm> {
  a = Conv(x, w1, b1) r = Relu(a)
  d = Conv<group=16, pads=[1,1,1,1]>(r, wd, bd) s = Relu(d)
  c = Conv(s, w2, b2) u = Relu(c) p = GlobalAveragePool(u) q = Flatten(p) y = Gemm(q, m, bm)
}"""


def test_symmetric_integers_are_all_used() -> None:
    draft, context = bench_of(simplify(parse(NET)), (1, 3, 12, 12), "tensorrt")
    centered = center(draft, context)
    assert centered is not None
    assert context.evaluator.evaluate(centered.reference).noise < 1e-9
    good, better = (correct_biases(one, context) for one in (draft, centered))
    assert good is not None
    assert better is not None
    assert context.error(better) < 0.6 * context.error(good)
    assert centered.plan.integer_nodes.keys() == draft.plan.integer_nodes.keys()
    assert {
        kind: n for kind, n in op_counts(centered.reference).items() if kind in ("Pad", "Clip", "Relu")
    } == {
        "Pad": 1,
        "Clip": 3,
    }


def test_a_pad_that_gains_too_little_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.algorithms.channels.padding.WORTH", 1e6)
    draft, context = bench_of(simplify(parse(NET)), (1, 3, 12, 12), "tensorrt")
    centered = center(draft, context)
    assert centered is not None
    assert "Pad" not in op_counts(centered.reference)
    assert context.evaluator.evaluate(centered.reference).noise < 1e-9


def test_zero_points_do_it_without() -> None:
    draft, context = bench_of(simplify(parse(NET)), (1, 3, 12, 12), "onnxruntime")
    assert center(draft, context) is None


def test_nothing_it_was_given_is_changed() -> None:
    model = simplify(parse(NET))
    before = ir.to_proto(model).SerializeToString()
    draft, context = bench_of(model, (1, 3, 12, 12), "tensorrt")
    first, second = (center(draft, context) for _ in range(2))
    assert first is not None
    assert second is not None
    assert ir.to_proto(model).SerializeToString() == before
    assert (
        ir.to_proto(first.reference).SerializeToString() == ir.to_proto(second.reference).SerializeToString()
    )
