"""A metric of the task through the whole flow: command line, comparison, ranking, goal, report."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from cli import onnxq as command
from cli import save_data, save_model

import onnxq
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.goal import Goal
from onnxq.pipelines.compare import compare_files
from onnxq.pipelines.sensitivity import rank
from onnxq.pipelines.static import quantize_static

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
COUNT = 60
FAST = {"verify": "off", "autotune": "off", "correct": "none"}
METRIC = """import numpy as np

def share(outputs, labels):
    return np.mean([one["y"].argmax() == label for one, label in zip(outputs, labels)])
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 3, 3, 3)), "b": rng.normal(size=8), "v": rng.normal(size=(8, 4))}
    model = save_model(tmp_path / "m.onnx", **{n: a.astype(np.float32) for n, a in weights.items()})
    x = rng.normal(size=(COUNT, 3, 8, 8)).astype(np.float32)
    labels = ort.InferenceSession(model).run(None, {"x": x})[0].argmax(1)
    labels[::4] = (labels[::4] + 1) % 4
    save_data(tmp_path / "d.npz", x=x, label=labels)
    (tmp_path / "my_metric.py").write_text(METRIC)
    return tmp_path


def options(folder, **more):
    given = {"data": folder / "d.npz", "labels": "label", "metric": f"{folder}/my_metric.py:share"}
    return QuantConfig(**{**FAST, **given, **more})


def quantized(folder, config, **more):
    return quantize_static(folder / "m.onnx", folder / "q.onnx", config=config, **more)


def test_both_values_are_told(folder):
    result = quantized(folder, options(folder, report=folder / "r.html"))
    found = result.quality.metric
    labels = np.load(folder / "d.npz")["label"]
    held = np.arange(COUNT)[4::5]
    exact = ort.InferenceSession(folder / "m.onnx").run(None, {"x": np.load(folder / "d.npz")["x"][held]})
    assert found.float_value == np.mean(exact[0].argmax(1) == labels[held])
    assert (found.name, found.samples) == ("share", len(held))
    page = (folder / "r.html").read_text("utf-8")
    assert f"share (float: {found.float_value:.4g})" in page
    assert f"Metric of the task: share {found.value:.4g}" in page


def test_a_batched_loader_gives_the_same_value(folder):
    stored = np.load(folder / "d.npz")
    one = quantized(folder, options(folder)).quality.metric
    loader = [(stored["x"][n : n + 1], stored["label"][n : n + 1]) for n in range(COUNT)]
    config = QuantConfig(metric=f"{folder}/my_metric.py:share", batch_size=4, **FAST)
    assert quantized(folder, config, data=loader).quality.metric.float_value == one.float_value
    pairs = [(stored["x"][n : n + 6], stored["label"][n : n + 6]) for n in range(0, COUNT, 6)]
    assert quantized(folder, config, data=pairs).quality.metric.samples == 12


def test_a_goal_that_is_relative_to_float(folder):
    result = quantized(folder, options(folder, goal="metric>=0.9x"))
    assert str(result.search.goal) == "metric>=0.9x"
    assert result.search.chosen.value >= 0.9 * result.quality.metric.float_value
    (warning,) = [text for text in result.warnings if "TOO FEW SAMPLES FOR THE GOAL metric>=0.9x" in text]
    assert "share is measured on 12 held-out samples, with a standard error of 0.1" in warning


def test_a_goal_keeps_nodes_in_float_for_the_metric(folder):
    def roundings(path):
        return sum(node.op_type == "QuantizeLinear" for node in onnx.load(path).graph.node)

    plain = quantized(folder, options(folder, metric=roundings)).quality.metric.value
    result = quantized(folder, options(folder, metric=roundings), goal=Goal("metric", at_most=plain - 1))
    assert result.search.chosen.value < plain
    assert result.search.chosen.floats


def test_a_goal_that_float_misses_is_an_error(folder):
    with pytest.raises(
        ConfigError, match=r"float model itself does not reach the goal metric>=0\.999: its share"
    ):
        quantized(folder, options(folder, goal="metric>=0.999"))
    assert not (folder / "q.onnx").exists()


def test_the_float_models_results_are_labels(folder):
    found = quantized(folder, options(folder, metric="top1", labels="float")).quality.metric
    assert (found.float_value, found.pseudo) == (1.0, True)
    assert "pseudo labels" in str(found)
    assert 0.05 < found.standard_error < 0.1  # 12 samples, all right: not as sure as none wrong suggests
    with pytest.raises(ConfigError, match="share cannot take labels from the float model"):
        quantized(folder, options(folder, labels="float"))


def test_wrong_metrics_are_found_before_the_work(folder):
    with pytest.raises(ConfigError, match="expected FILE"):
        quantized(folder, options(folder, metric="accuracy"))
    with pytest.raises(CalibrationError, match=r"top1: 12 of 12 samples have no label: .*d\.npz\[4\]"):
        quantized(folder, options(folder, metric="top1", labels=None))


def test_a_metric_that_fails_is_told_before_corrections(folder, monkeypatch):
    monkeypatch.setattr("onnxq.pipelines.static.corrected", None)

    def own(outputs, labels):
        return outputs["y"]

    with pytest.raises(ConfigError, match=r"own failed: .*test_metric\.py, line \d+: TypeError"):
        quantized(folder, options(folder, metric=own))


def test_points_are_ranked_by_what_the_metric_loses(folder):
    found = rank(folder / "m.onnx", options(folder))
    losses = [one.quality.metric.loss for one in found]
    assert losses == sorted(losses, reverse=True)
    assert {one.quality.metric.samples for one in found} == {COUNT - 12}
    with pytest.raises(ConfigError, match="takes a whole model"):
        rank(folder / "m.onnx", options(folder, metric=lambda path: 1.0))


def test_models_are_compared(folder):
    quantized(folder, QuantConfig(data=folder / "d.npz", **FAST))
    config = QuantConfig(data=folder / "d.npz", labels="label", metric="top1")
    quality, _ = compare_files(folder / "m.onnx", folder / "q.onnx", config)
    assert quality.metric.samples == COUNT
    assert quality.metric.float_value == pytest.approx(0.75)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


def test_the_commands_of_the_page_run(folder):
    lines = [shlex.split(line) for line in blocks("sh")[0].splitlines()]
    files = {"MODEL": "m.onnx", "OUTPUT": "q.onnx", "data.npz": "d.npz"}
    told = []
    for line in lines[1:]:
        arguments = [files.get(word, word) for word in line[1:]]
        done = command(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert [line[1] for line in lines[1:]] == ["quantize", "compare", "sensitivity"]
    assert "metric>=0.99x holds" in told[0]
    assert "float 0.75" in told[1]
    assert "metric" in told[2]


def test_the_examples_of_the_page_run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "m.onnx").rename("model.onnx")
    (folder / "d.npz").rename("data.npz")
    own, *examples = blocks("python")
    (folder / "my_metric.py").write_text(own)
    values = []
    for code in examples:
        names = {}
        exec(compile(code, PAGE.name, "exec"), names)
        values.append(names["result"].quality.metric.float_value)
    assert values == pytest.approx([0.75, 0.7])  # of 12 samples, and of two batches of five


def test_the_ranking_in_json_has_the_metric(folder):
    given = ("--data", "d.npz", "--labels", "label", "--metric", "top1", "--correct", "none")
    ranked = json.loads(command("sensitivity", "m.onnx", *given, "--json", cwd=folder).stdout)
    assert {"name", "value", "float_value"} <= ranked[0]["metric"].keys()


def test_a_goal_is_public():
    assert onnxq.Goal("wer", at_most=0.1).limit == 0.1
