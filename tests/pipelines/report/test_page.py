"""The report in a real browser, at desktop and phone widths. Skipped without Playwright or Chromium."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from cli import save_data, save_model

from onnxq.core.config import QuantConfig
from onnxq.pipelines.static import quantize_static

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

WIDTHS = {"desktop": 1280, "phone": 390}
SECTIONS = (
    *("result", "layers", "times", "samples", "graph", "plan", "checks", "calibration", "weights"),
    *("commands", "request"),
)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a small classifier of pictures, with names that are long and hostile."""
    folder = tmp_path_factory.mktemp("report")
    save_model(folder / "m.onnx", TEXT)
    pictures = np.random.default_rng(0).random((20, 3, 32, 32)).astype(np.float32)
    save_data(folder / "d.npz", x=pictures)
    made = folder / "report.html"
    quantize_static(
        folder / "m.onnx",
        folder / "o.onnx",
        folder / "d.npz",
        QuantConfig(report=made, goal="sqnr>=45", threads=1, autotune="off"),
    )
    return made


TEXT = f"""g (float[N,3,32,32] x) => (float[N,4] y) <float[8,3,3,3] w, float[8] b, float[8,4] v>
{{ c = Conv<pads=[1,1,1,1]>(x, w, b)  {"long_" * 30} = Relu(c)
  p = GlobalAveragePool({"long_" * 30})  f = Flatten(p)  y = MatMul(f, v) }}"""


@pytest.fixture(scope="module")
def chromium():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=WIDTHS)
def page(request, report, chromium):
    """The open page; whatever the browser complains of, or would fetch, is a failure."""
    opened = chromium.new_page(viewport={"width": WIDTHS[request.param], "height": 844})
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


def test_all_sections_are_there_and_nothing_is_wider_than_the_page(page):
    drawn(page)
    for section in SECTIONS:
        assert page.locator(f"#{section} h2").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator("#layers svg.plot circle.mark").count() >= 3
    assert page.locator("#samples img").first.evaluate("image => image.naturalWidth") > 0


def test_the_graph_finds_a_node(page):
    drawn(page)
    assert page.locator("#graph canvas").count() > 0
    page.locator("#graph input").fill("matmul")
    assert page.locator("#graph .controls span").text_content() == "1 found"
    assert "MatMul" in page.locator("#graph .chosen").text_content()
    page.locator("#graph input").fill("nothing is called so")
    assert page.locator("#graph .controls span").text_content() == "0 found"


def test_the_switch_between_dark_and_light_is_remembered(page):
    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before = paper()
    page.locator("button.theme").click()
    after = paper()
    assert before != after
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
