"""Accuracy and speed of one model against another."""

import math

import numpy as np
import onnx_ir as ir
import pytest
from graphs import parse

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from onnxq.core.errors import ModelError
from onnxq.pipelines.compare import check_alike
from onnxq.verify import accuracy
from onnxq.verify.accuracy import AccuracyEvaluator, OutputQuality, Quality
from onnxq.verify.latency import race


def compare(float_model, int8_model, samples, on_sample=None):
    return AccuracyEvaluator(float_model, samples).evaluate(int8_model, on_sample)


def scaled(factor, out="float[N,C] y", given="float[N,C] x"):
    return parse(f"g ({given}) => ({out}) <float f> {{ y = Mul(x, f) }}", f=factor)


def feed(*rows):
    return [Sample("s", {"x": np.array(rows, np.float32)}, len(rows))]


def test_sqnr_of_a_known_error():
    quality = compare(scaled(1.0), scaled(1.1), feed([1, 2], [3, -4]))
    assert quality.outputs["y"].sqnr == pytest.approx(20, abs=1e-4)  # the error is a tenth of the signal
    assert quality.outputs["y"].agreement == 1.0
    assert quality.outputs["y"].finite
    assert quality.samples == 2


def test_agreement_is_of_the_largest_class():
    mirrored = compare(scaled(1.0), scaled(-1.0), [*feed([1, 2], [3, 0]), *feed([0, 0])])
    assert mirrored.outputs["y"].agreement == pytest.approx(1 / 3)  # ties go to the first class in both


def test_the_classes_of_a_map_of_pixels_lie_on_axis_1():
    shape = "float[N,C,H,W]"
    models = [scaled(factor, f"{shape} y", f"{shape} x") for factor in (1.0, -1.0)]
    pixels = np.array([[[[1.0, 0.0]], [[0.0, 0.0]]]], np.float32)  # 2 classes, 1 x 2 pixels
    quality = compare(*models, [Sample("s", {"x": pixels})])
    assert quality.outputs["y"].agreement == 0.5


def test_where_nothing_is_decided_there_is_no_agreement():
    assert compare(scaled(1.0), scaled(1.1), feed([1], [2])).outputs["y"].agreement is None


def test_the_same_model_is_infinitely_close():
    assert compare(scaled(1.0), scaled(1.0), feed([1, 2])).outputs["y"].sqnr == math.inf


def test_integers_agree_or_do_not():
    models = [
        parse(
            "g (float[N,2] x) => (int64[N] y) <float[2] f> { m = Mul(x, f) y = ArgMax<axis=1, keepdims=0>(m) }",
            f=f,
        )
        for f in ([1.0, 1.0], [1.0, 4.0])
    ]
    output = compare(*models, feed([1, 2], [3, 1], [3, 2], [4, 0])).outputs["y"]
    assert output.agreement == 0.5  # 1, 0, 0, 0 and 1, 1, 1, 0
    assert math.isnan(output.sqnr)


def test_what_overflows_only_in_the_quantized_model_is_told():
    output = compare(scaled(1.0), scaled(3e38), feed([100.0, 0.0])).outputs["y"]
    assert not output.finite
    assert output.sqnr == -math.inf


def test_infinities_of_the_float_model_do_not_count():
    text = "g (float[N,C] x) => (float[N,C] y) <float f> { m = Mul(x, f)  l = Log(x)  y = Add(m, l) }"
    output = compare(parse(text, f=1.0), parse(text, f=1.1), feed([0.0, 1.0])).outputs["y"]
    assert output.finite
    assert output.sqnr == pytest.approx(20, abs=1e-4)  # of the second value, 1.0 and 1.1


def test_outputs_whose_size_depends_on_the_values():
    text = """g (float[N] x) => (int64[1,K] i, float[K] y) <float f>
    { m = Sub(x, f)  p = Relu(m)  i = NonZero(p)  t = Transpose<perm=[1,0]>(i)  y = GatherND(x, t) }"""
    sample = [Sample("s", {"x": np.array([1, 2, 3], np.float32)})]
    quality = compare(parse(text, f=0.5), parse(text, f=1.5), sample)  # three values, and two
    assert quality.outputs["i"].agreement == pytest.approx(2 / 3)
    assert quality.outputs["y"].sqnr == pytest.approx(10 * math.log10(14 / 0.5))  # 1 is missing, 2 is nearest
    assert quality.outputs["y"].finite


def test_progress_counts_samples():
    told = []
    compare(scaled(1.0), scaled(1.0), [*feed([1, 2], [3, 4]), *feed([5, 6])], on_sample=told.append)
    assert told == [2, 3]


def test_no_samples_only_load_the_models():
    quality = compare(scaled(1.0), scaled(1.0), [])
    assert quality.samples == 0
    assert math.isnan(quality.sqnr)
    assert quality.agreement is None


def test_a_sample_that_does_not_fit_is_named():
    with pytest.raises(CalibrationError, match="cannot run bad"):
        compare(scaled(1.0), scaled(1.0), [Sample("bad", {"x": np.zeros(3, np.float32)})])


def test_the_worst_output_counts():
    outputs = {
        "a": OutputQuality(30.0, None),
        "b": OutputQuality(20.0, 0.9),
        "c": OutputQuality(math.nan, 0.8),
    }
    quality = Quality(outputs, 1)
    assert (quality.sqnr, quality.agreement) == (20.0, 0.8)


@pytest.mark.parametrize(("kept", "runs"), [(accuracy.KEPT_BYTES, 3), (8, 5), (0, 6)])
def test_the_float_model_runs_once_a_sample_unless_its_outputs_are_too_large(kept, runs, monkeypatch):
    samples = [*feed([1, 2]), *feed([3, -4]), *feed([5, 6])]
    expected = [compare(scaled(1.0), scaled(factor), samples) for factor in (1.1, 1.2)]
    monkeypatch.setattr(accuracy, "KEPT_BYTES", kept)
    evaluator, sessions, run = AccuracyEvaluator(scaled(1.0), iter(samples)), [], accuracy._run

    def counted(session, sample):
        sessions.append(session)
        return run(session, sample)

    monkeypatch.setattr(accuracy, "_run", counted)
    assert [evaluator.evaluate(scaled(factor)) for factor in (1.1, 1.2)] == expected
    assert sum(session is evaluator._reference for session in sessions) == runs
    assert evaluator.samples == samples


# --- can they be compared at all? -----------------------------------------------------------------

X, Y = "float[N,3] x", "float[N,3] y"


def relu(inputs=X, outputs=Y, source="x", target="y"):
    return parse(f"g ({inputs}) => ({outputs}) {{ {target} = Relu({source}) }}")


def test_models_that_fit():
    check_alike(relu(), relu("float[batch,3] x", "float[batch,3] y"))
    check_alike(relu(), relu(outputs="float[N,3] z", target="z"))  # outputs go by position


def test_an_unknown_shape_fits():
    unknown = relu()
    unknown.graph.outputs[0].shape = None
    check_alike(relu(), unknown)


def test_a_weight_that_is_listed_as_an_input_is_none():
    listed = relu()
    weight = ir.tensor(np.zeros(2, np.float32), name="w")
    value = ir.Value(name="w", shape=weight.shape, type=ir.TensorType(weight.dtype), const_value=weight)
    listed.graph.inputs.append(value)
    listed.graph.initializers.add(value)
    check_alike(relu(), listed)


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (relu("float[N,3] z", source="z"), "inputs"),
        (relu("float[N,4] x"), "inputs"),
        (relu("float[N,3,1] x"), "inputs"),
        (relu("float16[N,3] x", "float16[N,3] y"), "inputs"),
        (relu(f"{X}, float[1] more"), "inputs"),
        (relu(outputs="float[N,4] y"), "outputs"),
        (parse(f"g ({X}) => ({Y}, float[N,3] z) {{ y = Relu(x)  z = Tanh(x) }}"), "outputs"),
        (parse(f"g ({X}) => (int64[N,3] y) {{ y = Cast<to=7>(x) }}"), "outputs"),
    ],
)
def test_models_that_do_not_fit(other, kind):
    with pytest.raises(ModelError, match=f"different {kind} and cannot be compared: '[xy]'.*; '"):
        check_alike(relu(), other)


def test_a_race_has_times():
    speed = race((scaled(1.0), scaled(1.0)), feed([1, 2])[0], seconds=0.01)
    assert speed.float_seconds > 0
    assert speed.int8_seconds > 0
    assert 0.05 < speed.ratio < 20


def test_a_model_that_refuses_a_sample_loses_none_for_the_next_model():
    """Several samples are under way when the first one is refused."""
    evaluator = AccuracyEvaluator(scaled(1.0), (feed([float(i), 2.0])[0] for i in range(9)))
    wants_three = scaled(1.0, "float[N,3] y", "float[N,3] x")
    with pytest.raises(CalibrationError):
        evaluator.evaluate(wants_three)
    assert evaluator.evaluate(scaled(1.1)).samples == 9
    assert evaluator.evaluate(scaled(1.1)).samples == 9
    assert [sample.feeds["x"][0, 0] for sample in evaluator.samples] == list(range(9))


def test_a_released_evaluator_measures_the_same() -> None:
    model = parse("g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    other = parse("g (float[N,4] x) => (float[N,4] y) { y = LeakyRelu(x) }")
    feeds = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    evaluator = AccuracyEvaluator(model, [Sample("s", feeds, 3)])
    before = evaluator.evaluate(other)
    evaluator.release()
    assert evaluator.evaluate(other) == before
