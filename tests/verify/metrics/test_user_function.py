"""Functions of the user's own: what they get, and whose fault an error is."""

import os
from pathlib import Path

import numpy as np
import pytest
from graphs import parse

from calibrators.data.samples import Sample
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import LARGER_IS_BETTER, SMALLER_IS_BETTER, Goal
from onnxq.verify.accuracy import AccuracyEvaluator
from onnxq.verify.metrics.choice import _BUILT_IN, find_metric, settled

TEXT = """g (float[N,3] x) => (float[N,2] y, float[N] z) <float[3,2] w> {
    y = MatMul (x, w)  z = ReduceMax <axes = [1], keepdims = 0> (y) }"""
FIXED = TEXT.replace("N", "2")
RNG = np.random.default_rng(0)
W = RNG.normal(size=(3, 2)).astype(np.float32)
X = RNG.normal(size=(6, 3)).astype(np.float32)
MODEL, OTHER = parse(TEXT, opset=17, w=W), parse(TEXT, opset=17, w=W * 0.5)


def samples(rows=1, labels=True):
    starts = range(0, 6, rows)
    return [
        Sample(
            f"sample {n}", {"x": X[n : n + rows]}, rows, labels=tuple(range(n, n + rows)) if labels else ()
        )
        for n in starts
    ]


def measure(metric, given=None, model=MODEL, other=OTHER):
    evaluator = AccuracyEvaluator(model, given or samples())
    return evaluator.judged_by(find_metric(metric, model)).evaluate(other).metric


@pytest.mark.parametrize("rows", [1, 2])
def test_each_sample_has_outputs_and_a_label_of_its_own(rows):
    calls = []

    def own(outputs, labels):
        calls.append((outputs, labels))
        return sum(float(one["y"].sum()) for one in outputs)

    models = (MODEL, OTHER) if rows == 1 else (parse(FIXED, opset=17, w=W), parse(FIXED, opset=17, w=W * 0.5))
    found = measure(own, samples(rows), *models)
    for outputs, labels in calls:
        assert labels == list(range(6))
        assert [one["y"].shape for one in outputs] == [(1, 2)] * 6
    assert found.float_value == pytest.approx((X @ W).sum(), rel=1e-4)
    assert found.value == pytest.approx(found.float_value / 2, rel=1e-4)
    assert (found.name, found.samples) == ("own", 6)


def test_a_session_and_a_path():
    def by_session(session):
        feeds = {session.get_inputs()[0].name: X}
        return session.run(None, feeds)[0].sum()

    def by_path(path):
        assert isinstance(path, Path)
        return path.stat().st_size

    def any_name(model, threshold=3):
        return model.stat().st_size

    found = measure(by_session, samples(labels=False))
    assert found.value == pytest.approx((X @ W).sum() / 2, rel=1e-4)
    assert measure(by_path).value == measure(any_name).value > 0


def test_the_float_model_is_measured_once():
    calls = []

    def count(session):
        calls.append(session)
        return len(calls)

    evaluator = AccuracyEvaluator(MODEL, samples()).judged_by(find_metric(count, MODEL))
    assert [evaluator.evaluate(OTHER).metric.float_value for _ in range(3)] == [1, 1, 1]
    assert len(calls) == 4


def test_missing_labels_are_counted_and_named():
    def own(outputs, labels):
        return 1.0

    given = [*samples()[:2], *samples(labels=False)[2:]]
    with pytest.raises(CalibrationError, match=r"own: 4 of 6 samples have no label: sample 2, sample 3"):
        measure(own, given)


def write(folder, text):
    path = folder / "my_metric.py"
    path.write_text(text)
    return path


def test_a_file_is_loaded_with_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_it.py").write_text("def half(x):\n    return x / 2\n")
    text = "from beside_it import half\n\ndef share(outputs):\n    return half(len(outputs))\n"
    assert measure(f"{write(tmp_path, text)}:share", samples(labels=False)).value == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def share(outputs):\n    x = 1\n    return outputs['y']\n",
            r"failed: .*my_metric\.py, line 3: TypeError",
        ),
        ("import numpy as np\ndef share(outputs):\n    return np.mean('a')\n", r"my_metric\.py, line 3"),
        ("def share(outputs):\n    return float('inf')\n", "gave inf: expected a finite number"),
        ("def share(outputs):\n    return None\n", "gave None: expected a number"),
        ("def other(outputs):\n    return 1\n", "has no function 'share'; it has other"),
        ("import nothing_of_this_name\n", r"my_metric\.py, line 1: ModuleNotFoundError"),
        ("def share(:\n", r"my_metric\.py, line 1: SyntaxError"),
        ("def share(a, b):\n    return 1\n", r"takes \(a, b\): expected the parameters \(outputs, labels\)"),
        ("def share(session):\n    return session.run(None, {})\n", r"my_metric\.py, line 2"),
    ],
)
def test_errors_are_told_with_file_and_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        measure(f"{write(tmp_path, text)}:share")


def test_there_is_no_such_metric():
    with pytest.raises(ConfigError, match=r"expected FILE\.py:FUNCTION or one of top1, top5"):
        find_metric("accuracy", MODEL)
    with pytest.raises(ConfigError, match=r"none\.py: no such file"):
        find_metric("none.py:share", MODEL)


def test_outputs_that_cannot_be_told_apart_are_refused():
    text = """g (float[2,3] x) => (float[1] y) { s = ReduceMax <keepdims = 0> (x)  n = Constant <value_ints = [1]> ()  y = Reshape (s, n) }"""
    model = parse(text, opset=17)
    with pytest.raises(ConfigError, match="output 'y' of a batch of 2 has no axis of 2"):
        measure(lambda outputs: 1.0, samples(2), model, model)


def test_a_goal_and_the_option_name_one_metric():
    plain = QuantConfig()
    goal, config = settled(Goal("top1", 0.9), plain)
    assert (goal.name, config.metric) == ("top1", "top1")
    own = QuantConfig(metric="map:yolo")
    assert settled(Goal("map", 0.3), own) == (Goal("map", 0.3), own)
    assert settled(Goal("metric", 0.3), own)[1] == own
    assert settled(Goal("sqnr", 30), own) == (Goal("sqnr", 30), own)
    for wrong, options in (
        (Goal("metric", 0.3), plain),
        (Goal("top1", 0.3), own),
        (Goal("metric", at_most=0.3), own),
        (Goal("metric", 0.3), QuantConfig(metric="wer")),
    ):
        with pytest.raises(ConfigError, match="goal"):
            settled(wrong, options)


def test_a_file_that_has_changed_is_loaded_again(tmp_path):
    place = f"{write(tmp_path, 'def share(outputs): return 1')}:share"
    assert measure(place).value == 1
    os.utime(write(tmp_path, "def share(outputs): return 2"), ns=(1, 1))
    assert measure(place).value == 2


def test_goals_say_which_side_of_each_built_in_metric_is_better():
    assert {*LARGER_IS_BETTER, *SMALLER_IS_BETTER} == set(_BUILT_IN)
    assert [find_metric(name, MODEL).smaller for name in ("top1", "cosine", "map:yolo")] == [False] * 3
    assert [find_metric(name, MODEL).smaller for name in ("kl", "perplexity")] == [True] * 2
    assert find_metric(max, MODEL).smaller is None
