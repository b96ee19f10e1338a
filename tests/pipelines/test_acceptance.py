"""What is said of a written model that is not worth much."""

from types import SimpleNamespace

import onnx_ir as ir
import pytest

from onnxq.core.config import QuantConfig
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.pipelines.acceptance import POOR_SQNR, Acceptance, output_warnings, static_warnings
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


def test_what_was_not_compared_is_told():
    quality = Quality({"y": OutputQuality(30.0, None, incomparable=2), "z": OutputQuality(30.0, None)}, 4)
    (text,) = output_warnings(quality, "")
    assert text.startswith("output 'y' has other shapes than the float model's in 2 batches")
