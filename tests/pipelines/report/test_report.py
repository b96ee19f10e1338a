"""`--report`: everything is told, nothing is fetched, no name becomes markup."""

import os
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from cli import onnxq as command
from cli import save_data, save_model
from graphs import parse

from calibrators.errors import shorten
from calibrators.statistics import Statistics, TensorStatistics
from calibrators.statistics.histogram import Histogram
from onnxq.algorithms.corrections import Effect
from onnxq.algorithms.mixed_precision.search import Search
from onnxq.algorithms.mixed_precision.trials import TrialResult
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.goal import parse_goal
from onnxq.core.plan import FloatNode, Group, QuantParams, QuantPlan, QuantPoint, QuantSpec, StoredWeights
from onnxq.pipelines.report.activations import activations, stabilities
from onnxq.pipelines.report.blocks import Cell, Span
from onnxq.pipelines.report.chart import COLUMNS, HEIGHT, cumulative, distribution
from onnxq.pipelines.report.page import page
from onnxq.pipelines.report.report import Report, Request
from onnxq.pipelines.report.write import versions, write_report
from onnxq.pipelines.static import quantize_static
from onnxq.verify.accuracy import OutputQuality, Quality
from onnxq.verify.verdict import Finding, unchecked
from onnxq.verify.verdict import make_verdict as verdict_of

UINT8 = QuantSpec(ir.DataType.UINT8, symmetric=False)
WEIGHT = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0)
EVIL = "<script>alert('&')</script>\""


class Reader(HTMLParser):
    """Text, tags and attributes of a page; complains if an element is closed that was not open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]
        if tag not in {"meta", "input", "img"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        assert tag in {"rect", "path", "polyline"}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def seen(*samples, name="pictures/{}.jpg"):
    statistics = TensorStatistics()
    for number, values in enumerate(samples):
        statistics.update(
            np.array([values], np.float32), name_of=lambda _, number=number: name.format(number)
        )
    return statistics


def params(scale, zero_point=0, dtype=np.uint8):
    return QuantParams(np.asarray(scale, np.float32), np.asarray(zero_point, dtype))


def plan(*groups, nodes=("Conv",), floats=None):
    """Each group: (group, parameters)."""
    return QuantPlan(
        target="onnxruntime",
        points=(),
        biases=(),
        groups={group.name: group for group, _ in groups},
        integer_nodes={f"node_{i}": op for i, op in enumerate(nodes)},
        float_nodes=floats or {},
        params={group.name: p for group, p in groups},
    )


def activation(name="x", *others, **changes):
    return Group(name, UINT8, (name, *others), (name,), **changes)


def report(the_plan=None, statistics=None, **changes):
    made = Report(
        request=Request("models/net.onnx", "out/net-int8.onnx", "pictures", QuantConfig(method="minmax")),
        plan=the_plan or plan((activation(), params(0.5))),
        statistics=statistics,
        quality=Quality({"logits": OutputQuality(21.5, 0.985)}, 20),
        judged_on="held-out samples",
        skipped=0,
        warnings=(),
        float_bytes=4_000_000,
        int8_bytes=1_000_000,
        seconds=1.25,
        versions=versions(),
    )
    return replace(made, **changes)


def text_of(made):
    return Reader(page(made)).text


# --- what it tells --------------------------------------------------------------------------------


def test_what_corrections_gave():
    tried = (Effect("bias", 1.0, 10**-0.375, 0.5, True), Effect("rounding", 1.0, None, 6.0, False))
    text = text_of(report(corrections=tried))
    for told in (
        "correction effect time",
        "bias SQNR +3.75 dB 0.5 s",
        "rounding nothing to do 6.0 s",
    ):
        assert told in text
    assert "correction effect" not in text_of(report())


def test_what_was_asked_and_what_came_out():
    text = text_of(report(skipped=3))
    for told in (
        *("net.onnx → net-int8.onnx", "1 of 1 nodes quantized", "25.0% of the size", "21.50 dB", "98.5%"),
        *(
            "Measured on held-out samples: 20",
            "3 bad samples skipped",
            "1.2 s",
            "--method minmax",
            "models/net.onnx",
        ),
        *("pictures", "ONNX Runtime", "NumPy", "Python"),
    ):
        assert told in text


def test_warnings_come_first_and_as_alerts():
    text = page(report(warnings=["NO CALIBRATION DATA: unknown", "second"]))
    assert text.index('role="alert"') < text.index("NO CALIBRATION DATA") < text.index("second")
    assert text.index("second") < text.index("<h2>Result")
    assert 'role="alert"' not in page(report())


def test_of_synthetic_inputs_no_accuracy_is_claimed():
    request = Request("m", "o", "", QuantConfig())
    text = text_of(
        report(request=request, judged_on="synthetic inputs", statistics=Statistics({"x": seen([1.0])}, 1))
    )
    assert "unknown SQNR" in text
    assert "unknown agreement" in text
    assert "SYNTHETIC" in text
    assert "Ranges" not in text


def test_without_samples_accuracy_is_unknown():
    assert "Accuracy was not measured" in text_of(report(quality=None))


def test_float_nodes_have_their_reasons_and_long_lists_are_folded():
    few = {f"float_{i}": FloatNode("Softmax", f"its input 't{i}' comes in float") for i in range(3)}
    many = few | {f"more_{i}": FloatNode("Gelu", "no kernel") for i in range(50)}
    short, long = (page(report(plan((activation(), params(1.0)), floats=floats))) for floats in (few, many))
    assert "<details open><summary>3 nodes in float" in short
    assert "<details><summary>53 nodes in float" in long
    text = Reader(short).text
    assert "3 Softmax its input … comes in float" in text
    assert "float_2 Softmax its input 't2' comes in float" in text


def test_a_range_with_its_grounds():
    samples = [[0, 100.0]] * 7 + [[0, 250.0]]
    statistics = Statistics({"x": seen(*samples)}, 8)
    made = report(plan((activation("x", "y", "z", "w"), params(1.0, 10))), statistics)
    text = text_of(made)
    assert "x shared with y, z and 1 more -10 245 1 10 uint8" in text
    assert "59.2%" in text  # of 245, what came after the first 100
    assert "high: 7.jpg (59% less without it)" in text
    assert made.stability.grown == ("x",)
    assert all(sentence in text for sentence in made.stability.sentences)


def test_a_settled_range_is_not_set_by_one_sample():
    made = report(statistics=Statistics({"x": seen(*[[0, 500.0]] * 8)}, 8))
    assert "settled" in text_of(made)
    assert "high:" not in text_of(made)


def test_a_table_has_no_statistics_and_the_report_says_so():
    request = Request("m", "o", "", QuantConfig(from_table="t.json"))
    text = text_of(report(request=request, quality=None))
    assert "1 ranges come from t.json: there are no statistics" in text
    assert "x 0 127.5 0.5 0 uint8" in text
    assert "svg" not in Reader(page(report())).tags


def test_fixed_ranges_and_bad_values_are_explained():
    fixed = replace(activation("s"), observed_tensors=(), fixed=(0.0, 1.0))
    statistics = Statistics({"x": seen([1.0, np.nan], [2.0, 1.0])}, 2)
    text = text_of(report(plan((activation(), params(0.5)), (fixed, params(1 / 255))), statistics))
    assert "fixed by the operator" in text
    assert "1 values were NaN or infinite" in text


def test_weights_in_numbers():
    weight = Group("w", WEIGHT, ("w",), (), constant=True)
    text = text_of(report(plan((weight, params([0.5, 0.001, 0.02], [0, 0, 0], np.int8)))))
    assert "w int8 symmetric, axis 0 3 0.001 0.02 0.5 500 ×" in text


def test_weights_in_blocks_are_counted_by_block():
    spec = QuantSpec(ir.DataType.INT4, symmetric=True, axis=0, block_size=32)
    group = Group("w", spec, ("w",), (), constant=True)
    scale = np.array([[0.5, 0.001], [0.02, 0.02]], np.float32)
    text = text_of(report(plan((group, QuantParams(scale, np.zeros((2, 2), ml_dtypes.int4))))))
    assert "w int4 symmetric, axis 0, blocks of 32 4 0.001 0.02 0.5 500 ×" in text


def test_modes_without_ranges_say_so_and_list_the_formats_of_weights():
    stored = {"node_0": StoredWeights(ir.DataType.UINT4, 32)}
    request = Request("m", "o", "d", QuantConfig(mode="weight-only"))
    made = report(replace(plan(nodes=("MatMul",)), stored_weights=stored), request=request)
    text = text_of(made)
    for told in (
        "1 node: float activations, uint4 weights in blocks of 32",
        "activations stay float, only weights are quantized",
        "node_0 MatMul uint4 weights in blocks of 32",
    ):
        assert told in text
    assert "No weights were quantized" in text_of(replace(made, plan=plan()))


@pytest.mark.parametrize(("reached", "suggested"), [(12.0, 20), (26.7, 30), (float("inf"), 20)])
def test_the_goal_to_try_is_above_what_was_reached(reached, suggested):
    text = text_of(report(quality=Quality({"y": OutputQuality(reached, None)}, 1)))
    assert f"--goal 'sqnr>={suggested}'" in text


# --- what it is made of ---------------------------------------------------------------------------


def test_no_name_becomes_markup():
    group = activation(EVIL, EVIL + "2")
    weight = Group(EVIL + "w", WEIGHT, (EVIL + "w",), (), constant=True)
    statistics = Statistics({EVIL: seen(*[[0, 1.0 + i] for i in range(8)], name=EVIL + "{}")}, 8)
    made = report(
        plan(
            *[(group, params(1.0)), (weight, params([1.0], [0], np.int8))],
            nodes=[EVIL],
            floats={EVIL: FloatNode(EVIL, EVIL)},
        ),
        statistics,
        request=Request(EVIL, EVIL, EVIL, QuantConfig(exclude=EVIL)),
        quality=Quality({EVIL: OutputQuality(1.0, None)}, 1),
        judged_on=EVIL,
        warnings=[EVIL],
        versions={"onnxq": EVIL},
    )
    text = page(made)
    assert EVIL not in text
    assert "<script>alert" not in text
    plain = page(report(statistics=Statistics({"x": seen(*[[0, 1.0 + i] for i in range(8)])}, 8)))
    assert Reader(text).tags.count("script") == Reader(plain).tags.count("script") == 2
    assert EVIL in Reader(text).text


def test_nothing_is_fetched():
    text = page(report(statistics=Statistics({"x": seen([1.0])}, 1)))
    assert all(link.startswith(("#", "data:image/")) for link in Reader(text).links)
    assert not re.search(r"https?:|url\(|@import|\bimport\b|fetch\(", text)
    assert "default-src 'none'" in unescape(text)


def test_attributes_are_escaped_too():
    warning = Finding("", "warning", "a<b", "")
    text = page(report(verdicts=(verdict_of("legality", '"quoted" & <i>', [warning]),)))
    assert "&#34;quoted&#34; &amp; &lt;i&gt;" in text
    shared = page(report(plan((activation("x", 'y" onclick="z'), params(1.0)))))
    assert 'title="y&#34; onclick=&#34;z"' in shared


def test_a_cell_without_a_number_has_no_sort_key():
    assert Cell((Span("–"),)).sort_key == ""


def test_a_chart_shows_what_is_rare_and_marks_the_range():
    statistics = seen([0.0] * 100_000 + [1.0])
    chart = distribution(statistics.histogram, (0.0, 1.0), (0.0, 0.5), "words")
    (outline,) = re.findall(r'class="bars" d="([^"]*)"', chart)
    tops = [int(y) for y in re.findall(r"V(\d+)", outline)]
    zeros, nothing, one, end = tops
    assert zeros < one < nothing == end == HEIGHT
    assert f'width="{COLUMNS * 3 / 2:.1f}"' in chart


def test_counts_below_a_value():
    statistics = seen([-1.0, 0.0, 1.0, 1.0])
    assert cumulative(statistics.histogram, np.array([-np.inf, -0.5, 0.5, np.inf])).tolist() == [0, 1, 2, 4]
    assert cumulative(Histogram(), np.array([np.inf])).tolist() == [0]


def test_what_lies_outside_the_range_is_clipped_but_for_half_a_step():
    statistics = {"x": seen([0.0] * 90 + [255.4] * 5 + [300.0] * 5)}
    (only,) = activations(plan((activation(), params(1.0))), statistics)
    assert only.clipped == pytest.approx(0.05)
    (bounded,) = activations(plan((activation(bounds=(0.0, 255.0)), params(1.0))), statistics)
    assert bounded.clipped == 0


def test_only_ranges_with_statistics_are_assessed():
    groups = plan((activation("x"), params(1.0)), (activation("y"), params(1.0)))
    assert list(stabilities(groups, {"y": seen([1.0])})) == ["y"]


def test_of_symmetric_formats_the_nearer_end_is_not_assessed():
    statistics = {"x": seen(*[[-1, 100.0]] * 7, [-90, 100.0])}
    symmetric = replace(activation(), spec=QuantSpec(ir.DataType.INT8, symmetric=True))
    growths = [
        stabilities(plan((group, params(1.0, zero, np.int16))), statistics)["x"].growth
        for group, zero in ((activation(), 100), (symmetric, 0))
    ]
    assert growths == [pytest.approx(89 / 190), 0]


# --- the file -------------------------------------------------------------------------------------


def test_it_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "r.html"
    path.write_text("before")
    monkeypatch.setattr(Path, "replace", _full)
    with pytest.raises(ModelError, match=r"r\.html: the report cannot be written: No space left"):
        write_report(report(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]
    assert path.read_text() == "before"


def _full(*_):
    raise OSError(28, "No space left on device")


def test_paths_that_are_no_text_can_be_told(tmp_path):
    odd = os.fsdecode(b"n\xe9t.onnx")
    write_report(report(request=Request(odd, odd, odd, QuantConfig())), tmp_path / "r.html")
    (tmp_path / "r.html").read_text("utf-8")


def test_the_command_writes_it(tmp_path):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz", 20)
    done = command("quantize", "m.onnx", "o.onnx", "--data", "d.npz", "--report", "r.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "settled" in done.stdout or "still grew" in done.stdout
    reader = Reader((tmp_path / "r.html").read_text("utf-8"))
    assert "d.npz" in reader.text
    assert reader.tags.count("svg") == 8  # three ranges, two weights with their scales, the errors by layer
    for section in ("layers", "times", "samples", "graph", "commands"):
        assert f"#{section}" in reader.links
    assert "Not measured" not in reader.text
    assert "onnxq quantize m.onnx o.onnx --data d.npz --report r.html" in reader.text


def test_it_may_not_overwrite_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="would overwrite"):
        quantize_static("m.onnx", "o.onnx", config=QuantConfig(report="m.onnx"))
    with pytest.raises(ModelError, match="no directory"):
        quantize_static("m.onnx", "o.onnx", config=QuantConfig(report="missing/r.html"))
    assert not Path("o.onnx").exists()


def test_synthetic_inputs_are_told_of_in_the_report(tmp_path):
    ir.save(
        parse("g (float[N,4] x) => (float[N,2] y) <float[4,2] w> { a = MatMul(x, w) y = Relu(a) }"),
        tmp_path / "m.onnx",
    )
    config = QuantConfig(report=tmp_path / "r.html", target="tensorrt")
    result = quantize_static(tmp_path / "m.onnx", tmp_path / "o.onnx", config=config)
    text = Reader((tmp_path / "r.html").read_text("utf-8")).text
    assert result.warnings
    assert all(warning in text for warning in result.warnings)
    assert result.report.stability is None


def test_a_goal_is_told_with_what_was_tried():
    cheap = TrialResult(
        floats=(), widened={}, value=0.91, sqnr=21.0, agreement=0.95, size=1_500_000, speed=2.5
    )
    wide = {f"conv{i}": "int8" for i in range(7)}
    chosen = TrialResult(
        floats=("a", "b", "c"), widened=wide, value=0.987, sqnr=28.125, agreement=None, size=2_500_000
    )
    search = Search(parse_goal("agreement>=0.98"), chosen, (cheap, chosen))
    text = text_of(report(search=search))
    assert "agreement>=0.98 holds with 3 more nodes in float and 7 with wider weights" in text
    for told in ("0.91", "21.00 dB", "95.0%", "2.50", "0.987", "28.12 dB", "1.50 MB", "7", "chosen"):
        assert told in text
    assert "nodes kept in float" not in text_of(report())


def test_what_runtimes_said_is_told_with_its_nodes():
    nodes = tuple(f"conv{i}" for i in range(9))
    findings = [Finding(node, "error", "runs in float.", "Use another type.") for node in nodes]
    findings.append(Finding("", "warning", "takes a copy"))
    verdicts = (verdict_of("legality", "4 rules"), verdict_of("onnxruntime", "0 of 9 in integers", findings))
    text = text_of(report(verdicts=verdicts))
    assert "legality passed 4 rules onnxruntime failed 0 of 9 in integers" in text
    assert f"onnxruntime error runs in float. Use another type. {shorten(nodes)} {', '.join(nodes)}" in text
    assert "onnxruntime warning takes a copy the whole model" in text


def test_without_findings_there_is_no_table_of_them():
    assert "severity" not in text_of(report(verdicts=(verdict_of("legality", "4 rules"),)))
    assert "checked neither against rules nor in a runtime" in text_of(report())


def test_names_of_nodes_with_findings_are_text():
    findings = [Finding(f"{EVIL}{i}", "warning", EVIL, EVIL) for i in range(7)]
    text = page(report(verdicts=(verdict_of("onnxruntime", EVIL, findings), unchecked(EVIL, EVIL))))
    assert "<script>alert" not in text
    Reader(text)


def test_the_report_of_a_quantization_says_what_its_verdicts_say(tmp_path):
    save_model(tmp_path / "m.onnx")
    result = quantize_static(
        tmp_path / "m.onnx", tmp_path / "o.onnx", save_data(tmp_path / "d.npz"), QuantConfig(method="minmax")
    )
    assert [one.runtime for one in result.report.verdicts] == [one.runtime for one in result.verdicts]
    assert result.report.verdicts[0].runtime == "legality"
    text = text_of(result.report)
    assert all(one.summary in text for one in result.verdicts)


def test_nodes_are_counted_by_their_types():
    uint16 = QuantSpec(ir.DataType.UINT16, symmetric=False)
    groups = [
        (activation("x"), params(0.5)),
        (Group("wide", uint16, ("wide",), ("wide",)), params(0.5, dtype=np.uint16)),
        (Group("w", WEIGHT, ("w",), (), constant=True), params(0.5, dtype=np.int8)),
    ]
    made = plan(*groups, nodes=("Conv", "Conv", "Conv", "Add"), floats={"n": FloatNode("Exp", "it is rare")})
    points = [
        *(QuantPoint("x", f"node_{i}", 0, UINT8, "x") for i in (0, 1)),
        QuantPoint("wide", "node_2", 0, uint16, "wide", converted_from="x"),
        *(QuantPoint("w", f"node_{i}", 1, WEIGHT, "w") for i in range(3)),
        *(QuantPoint("x", "node_3", i, UINT8, "x") for i in (0, 1)),
    ]
    text = text_of(report(replace(made, points=tuple(points))))
    assert (
        "2 nodes: uint8 activations, int8 weights; 1 node: uint16 activations, int8 weights; "
        "1 node: uint8 activations; conversions between the widths: 1; 1 float." in text
    )
