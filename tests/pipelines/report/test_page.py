"""The report in a real browser, at desktop and phone widths. Skipped without Playwright or Chromium."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest
from cli import save_data, save_model
from encoders import ACTIVATIONS, ENCODER, PARAMETERS

from onnxq.core.config import QuantConfig
from onnxq.pipelines.static import quantize_static
from onnxq.pipelines.weight_only.pipeline import quantize_weights

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

WIDTHS = {"desktop": 1280, "phone": 390}
SECTIONS = (
    *("result", "layers", "times", "samples", "graph", "plan", "checks", "calibration", "weights"),
    *("commands", "request"),
)

CLASSIFIER = f"""g (float[N,3,32,32] x) => (float[N,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
{{ c = Conv<pads=[1,1,1,1]>(x, w, b)  {"long_" * 30} = Relu(c)
  p = GlobalAveragePool({"long_" * 30})  f = Flatten(p)  y = MatMul(f, v) }}"""

SENTENCES = f"""g (int64[N,L] ids) => (float[N,8] y) <float[50,8] table, {PARAMETERS}, float[8] b, float[8] g,
  float[8,32] up, float[32] c, float[32,8] down, float root, int64[4] heads, int64[3] joined>
{{ x = Gather(table, ids) {ENCODER.format(activation=ACTIVATIONS["relu"]).replace("y =", "states =")}
  y = ReduceMean<axes=[1], keepdims=0>(states) }}"""

CONTROL_FLOW = """g (float[N,8] x, int64 n) => (float[N,4] y) <float[8,32] v, float[32,32] u, float[32,4] t, bool go>
{ h = MatMul(x, v)
  l = Loop(n, go, h) <body = r (int64 i, bool k, float[N,32] s) => (bool o, float[N,32] e)
      { o = Identity(k)  m = MatMul(s, u)  e = Tanh(m) }>
  y = MatMul(l, t) }"""


def classifier(folder):
    """Of pictures, with names that are long and hostile, and a goal."""
    save_model(folder / "m.onnx", CLASSIFIER)
    pictures = np.random.default_rng(0).random((20, 3, 32, 32)).astype(np.float32)
    save_data(folder / "d.npz", x=pictures)
    return folder / "d.npz", {"goal": "sqnr>=45"}


def sentences(folder):
    """A transformer that reads token ids, sentences of several lengths."""
    save_model(folder / "m.onnx", SENTENCES, opset=17, root=2, heads=[0, 0, 2, 4], joined=[0, 0, 8])
    rng = np.random.default_rng(0)
    lengths = [3 + i % 5 for i in range(10)]
    return [{"ids": rng.integers(0, 50, (1, length))} for length in lengths], {}


def control_flow(folder):
    """Products in the body of a Loop, with weights in blocks."""
    save_model(folder / "m.onnx", CONTROL_FLOW, go=True)
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.random((1, 8), np.float32), "n": np.array(1 + i % 3)} for i in range(10)]
    return feeds, {"mode": "weight-only"}


MODELS = {"classifier": classifier, "sentences": sentences, "control flow": control_flow}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The reports of three models of different kinds."""
    return {name: _report(make, tmp_path_factory.mktemp("report")) for name, make in MODELS.items()}


def _report(make, folder):
    data, options = make(folder)
    made = folder / "report.html"
    quantize = quantize_weights if options.get("mode") == "weight-only" else quantize_static
    speed = {} if "mode" in options else {"autotune": "off"}
    config = QuantConfig(report=made, threads=1, **options, **speed)
    quantize(folder / "m.onnx", folder / "o.onnx", data=data, config=config)
    return made


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def width(request):
    return WIDTHS[request.param]


@pytest.fixture
def page(reports, chromium, width):
    yield from _opened(chromium, reports["classifier"], width)


@pytest.fixture(params=MODELS)
def each(request, reports, chromium, width):
    """The page of each model."""
    yield from _opened(chromium, reports[request.param], width)


def _opened(chromium, report, width):
    """The open page; whatever the browser complains of, or would fetch, is a failure."""
    opened = chromium.new_page(viewport={"width": width, "height": 844})
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on(
        "request", lambda asked: said.append(asked.url) if asked.url[:5] not in ("file:", "data:") else None
    )
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert said == []


def drawn(page):
    """Scroll to the graph, which draws it."""
    page.locator("#graph .graph").scroll_into_view_if_needed()
    page.locator("#graph .controls input").wait_for()


def test_all_sections_are_there_and_nothing_is_wider_than_the_page(each):
    drawn(each)
    for section in SECTIONS:
        assert each.locator(f"#{section} h2").is_visible()
        assert len(each.locator(f"#{section}").inner_text().splitlines()) > 1  # at least why it is empty
    assert each.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert each.locator("tbody:not(:has(tr))").count() == 0
    assert "None" not in each.locator("main").inner_text()


def test_errors_by_layer_and_thumbnails_are_drawn(page):
    assert page.locator("#layers svg.plot circle.mark").count() >= 3
    assert page.locator("#samples img").first.evaluate("image => image.naturalWidth") > 0


def test_the_graph_finds_a_node(each):
    drawn(each)
    assert each.locator("#graph canvas").count() > 0
    each.locator("#graph input").fill("matmul")
    assert re.fullmatch(r"[1-9]\d* found", each.locator("#graph .controls span").text_content())
    assert "MatMul" in each.locator("#graph .chosen").text_content()
    each.locator("#graph input").fill("nothing is called so")
    assert each.locator("#graph .controls span").text_content() == "0 found"


def test_bodies_of_control_flow_are_drawn_too(reports, chromium):
    for opened in _opened(chromium, reports["control flow"], 1280):
        drawn(opened)
        opened.locator("#graph input").fill("tanh")
        assert "Tanh" in opened.locator("#graph .chosen").text_content()
        assert "int4: 1" in opened.locator("#graph .legend").inner_text()


def test_the_switch_between_dark_and_light_is_remembered(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before = paper()
    page.locator("button.theme").click()
    after = paper()
    assert before != after
    page.wait_for_timeout(200)  # the browser stores it when it finds time
    page.reload()
    assert paper() == after
    page.locator("button.theme").click()
    assert paper() == before


def test_commands_can_be_copied(page):
    button = page.locator(".commands dd button").first
    button.click()
    page.wait_for_timeout(100)
    assert button.text_content() in ("copied", "marked")
    assert "onnxq quantize" in page.locator(".commands code").first.text_content()


def test_tables_are_sorted_and_filtered(page):
    head = page.locator("#layers table th").nth(1)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"


def test_print_leaves_out_what_paper_cannot_do(page):
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("nav").is_visible()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
