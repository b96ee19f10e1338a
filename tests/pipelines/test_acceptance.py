"""What is said of a written model that is not worth much."""

import re
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

import onnxq
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.floor import LEAST_SQNR
from onnxq.core.plan import Group, QuantPlan, QuantSpec
from onnxq.pipelines.acceptance import (
    Acceptance,
    output_warnings,
    refuse_doubts,
    static_warnings,
    verdict_warnings,
)
from onnxq.verify.accuracy import OutputQuality, Quality
from onnxq.verify.metrics.task_metric import MetricResult
from onnxq.verify.verdict import refused, unchecked


def said(sqnr=LEAST_SQNR - 1, weight=ir.DataType.INT8, synthetic=False, finite=True, **options):
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
    assert said(sqnr=LEAST_SQNR + 1) == []


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


# --- --strict -------------------------------------------------------------------------------------


def judged(sqnr=30.0, agreement=None, verdicts=(), synthetic=False, **more):
    quality = Quality({"y": OutputQuality(sqnr, agreement, **more)}, 4)
    refuse_doubts(Acceptance(quality, verdicts), synthetic=synthetic)


def test_what_can_be_trusted_is_not_refused():
    judged()
    judged(agreement=0.95)


@pytest.mark.parametrize(
    ("doubt", "told"),
    [
        ({"sqnr": 9.0}, "output 'y' is far from"),
        ({"sqnr": 15.0, "agreement": 0.5}, "output 'y' decides otherwise: agreement with float 50.0%"),
        ({"finite": False}, "NaN or infinite"),
        ({"incomparable": 2}, "in 2 batches"),
        ({"synthetic": True}, "accuracy is UNKNOWN"),
        ({"verdicts": (refused("tensorrt", "no such layer"),)}, "CHECK FAILED: tensorrt: no such layer"),
    ],
)
def test_what_cannot_be_trusted_is_refused(doubt, told):
    with pytest.raises(ModelError, match=re.escape(told)) as error:
        judged(**doubt)
    assert "--strict, so nothing is written" in str(error.value)


@pytest.mark.parametrize(("exact", "smaller", "count"), [(0.0, False, 1), (0.0, True, 0), (0.4, False, 0)])
def test_a_metric_that_float_fails_judges_nothing(exact, smaller, count):
    metric = MetricResult("map:yolo", 0.0, exact, 4, smaller=smaller)
    told = list(output_warnings(Quality({}, 4, metric=metric), ""))
    assert len(told) == count
    assert all("the float model itself has map:yolo 0" in text for text in told)


def test_a_failed_check_is_a_warning():
    (text,) = verdict_warnings((refused("tensorrt", "no such layer"), unchecked("openvino", "not installed")))
    assert text == "CHECK FAILED: tensorrt: no such layer"


@pytest.mark.parametrize("run", [onnxq.quantize_static, onnxq.quantize_dynamic])
def test_nothing_is_written_that_should_not_be_trusted(tmp_path, run):
    """Products that are alike cancel, and nothing but their noise is left."""
    rng = np.random.default_rng(0)
    model = parse(
        "g (float[N,64] x) => (float[N,64] y) <float[64,64] w, float[64,64] v> "
        "{ a = MatMul(x, w) b = MatMul(x, v) y = Sub(a, b) }",
        w=(weights := rng.normal(size=(64, 64)).astype(np.float32)),
        v=weights + rng.normal(0, 0.003, (64, 64)).astype(np.float32),
    )
    ir.save(model, tmp_path / "m.onnx")
    data = [{"x": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(20)]
    config = QuantConfig(
        strict=True, **({"floor": 0} if run is onnxq.quantize_static else {"mode": "dynamic"})
    )
    with pytest.raises(ModelError, match="--strict, so nothing is written: INACCURATE"):
        run(tmp_path / "m.onnx", tmp_path / "o.onnx", data=data, config=config)
    assert not (tmp_path / "o.onnx").exists()
