"""What is said of a written model: warnings, and accuracy where outputs are not comparable value by value."""

from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.pipelines.acceptance import POOR_SQNR, Acceptance, static_warnings
from onnxq.pipelines.compare import compare_files
from onnxq.pipelines.dynamic import quantize_dynamic
from onnxq.pipelines.sensitivity import rank
from onnxq.pipelines.static import quantize_static
from onnxq.verify.accuracy import OutputQuality, Quality


def said(sqnr=POOR_SQNR - 1, weight=ir.DataType.INT8, synthetic=False, finite=True, **options):
    group = Group("w", QuantSpec(weight, symmetric=True), ("w",), (), constant=True)
    plan = QuantPlan("onnxruntime", (), (), {"w": group}, {"n": "Conv"}, {})
    quality = Quality({"y": OutputQuality(sqnr, None, finite)}, 4)
    samples = SimpleNamespace(synthetic=synthetic, warnings=())
    context = SimpleNamespace(config=QuantConfig(**options), samples=samples)
    return list(
        static_warnings(
            Acceptance(quality, ()), plan, ir.Model(ir.Graph((), (), nodes=()), ir_version=8), context
        )
    )


def test_a_good_result_is_not_doubted():
    assert said(sqnr=POOR_SQNR + 1) == []


def test_a_poor_result_comes_with_what_to_do():
    (text,) = said()
    assert "output 'y' is far from the float model's: SQNR 9.0 dB" in text
    assert "--goal 'sqnr>=20'" in text
    assert "onnxq sensitivity" in text
    assert "adaround" not in text


def test_the_goal_that_is_advised_can_be_given():
    (text,) = said()
    goal = text.partition("--goal '")[2].partition("'")[0]
    assert QuantConfig(goal=goal).goal == goal


def test_with_a_goal_a_stricter_one_is_advised():
    (text,) = said(goal="agreement>=0.5")
    assert "a stricter --goal" in text


@pytest.mark.parametrize(
    ("correct", "advised"),
    [(("bias",), True), (("bias", "adaround"), False), (("none",), False)],
)
def test_adaround_is_advised_for_few_bits_beside_what_was_asked_for(correct, advised):
    (text,) = said(weight=ir.DataType.INT4, correct=correct)
    assert ("--correct bias --correct adaround" in text) is advised


def test_synthetic_inputs_decide_nothing():
    first, second = said(synthetic=True)
    assert first.startswith("NO CALIBRATION DATA")
    assert second.endswith("SQNR 9.0 dB. Synthetic inputs may not tell.")


def test_what_is_not_finite_is_told():
    assert said(finite=False) == ["output 'y' of the quantized model holds NaN or infinite numbers"]


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
