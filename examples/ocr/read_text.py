"""Read the text of a picture with PP-OCR, its detector and its recognizer in float and in int8.

Both models are in the wheel of rapidocr, which also runs the int8 files: they go in by their paths.
"""

from __future__ import annotations

import argparse
import logging
import random
import string
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rapidocr import RapidOCR

import onnxq

MODELS = {"Det": "PP-OCRv6_det_small.onnx", "Rec": "PP-OCRv6_rec_small.onnx"}
"""Part of the pipeline, as rapidocr names it -> its model."""

RECEIPT = ("GREEN VALLEY BAKERY", "2 loaves of rye bread   7.80", "1 apple cake   12.50", "TOTAL EUR 20.30")

LINES = 8
"""Number of lines on a picture to calibrate on."""

Pixels = NDArray[np.uint8]


class Recorder:
    """An ONNX Runtime session that also keeps what it is given."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.seen: list[dict[str, NDArray[np.float32]]] = []

    def run(self, outputs: list[str], inputs: dict[str, NDArray[np.float32]]) -> Any:
        """Run the session."""
        self.seen.append(inputs)
        return self.session.run(outputs, inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def draw(lines: tuple[str, ...], chance: random.Random) -> Pixels:
    """Draw lines of text: [height, width, 3], uint8."""
    size = chance.randint(22, 34)
    paper, ink = chance.randint(200, 255), chance.randint(0, 90)
    image = Image.new("RGB", (640, 2 * size * len(lines) + 60), (paper, paper, paper - 15))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for row, line in enumerate(lines):
        pen.text((chance.randint(25, 60), 30 + 2 * size * row), line, (ink, ink, ink), font)
    return np.asarray(image)


def random_lines(chance: random.Random) -> tuple[str, ...]:
    """Make up words and numbers."""
    alphabets = (string.ascii_lowercase, string.ascii_uppercase, string.digits + ".,-:/")
    words = (
        "".join(chance.choices(chance.choice(alphabets), k=chance.randint(2, 8))) for _ in range(4 * LINES)
    )
    return tuple(" ".join(next(words) for _ in range(chance.randint(2, 4))) for _ in range(LINES))


def record(pictures: list[Pixels]) -> dict[str, list[dict[str, NDArray[np.float32]]]]:
    """Read the pictures in float; give what each model was fed on the way, crops of lines included."""
    ocr = RapidOCR(params={"Global.log_level": "error"})
    ocr(pictures[0])  # it opens its models when they are first needed
    engines = {"Det": ocr.text_det.session, "Rec": ocr.text_rec.session}
    for engine in engines.values():
        engine.session = Recorder(engine.session)
    for picture in pictures:
        ocr(picture)
    return {part: engine.session.seen for part, engine in engines.items()}


def read(models: dict[str, Path], picture: Pixels) -> tuple[str, ...]:
    """Read the lines of a picture with the given models."""
    paths = {f"{part}.model_path": str(path) for part, path in models.items()}
    return tuple(RapidOCR(params={"Global.log_level": "error", **paths})(picture).txts or ())


def main() -> None:
    """Quantize both models, and print what each pair reads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path, nargs="?", help="picture to read; default: a receipt is drawn")
    parser.add_argument("--calibration", type=Path, help="folder of pictures like it; default: drawn ones")
    parser.add_argument("--output", type=Path, default=Path("build/ocr"), help="folder for the int8 models")
    parser.add_argument("--samples", type=int, default=32, help="number of pictures to draw for calibration")
    parser.add_argument("--target", default="onnxruntime", help="where it will run, as for onnxq")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    options.output.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    if options.calibration:
        opened = (Image.open(path).convert("RGB") for path in sorted(options.calibration.iterdir()))
        pictures = [np.asarray(image) for image in opened]
    else:
        pictures = [draw(random_lines(chance), chance) for _ in range(options.samples)]
    picture = (
        np.asarray(Image.open(options.picture).convert("RGB")) if options.picture else draw(RECEIPT, chance)
    )
    Image.fromarray(picture).save(options.output / "picture.png")

    models = {part: Path(str(files("rapidocr"))) / "models" / name for part, name in MODELS.items()}
    int8 = {part: options.output / name.replace(".onnx", "-int8.onnx") for part, name in MODELS.items()}
    for part, inputs in record(pictures).items():
        result = onnxq.quantize_static(
            models[part], int8[part], inputs, onnxq.QuantConfig(target=options.target)
        )
        sizes = f"{result.float_bytes / 1e6:.1f} MB -> {result.int8_bytes / 1e6:.1f} MB"
        quality = f"{result.quality.sqnr:.1f} dB" if result.quality else "not measured"
        speed = f"{result.speed.ratio:.2f} times as fast" if result.speed else "not timed"
        print(f"{part}  {sizes}, SQNR {quality}, {speed} (one thread)", *result.warnings, sep="\n")
    before, after = read(models, picture), read(int8, picture)
    for name, lines in (("float", before), ("int8", after)):
        print(f"{name:5}  {' | '.join(lines)}")
    same = sum(line in after for line in before)
    print(f"{same} of {len(before)} lines are the same; the picture is {options.output}/picture.png")


if __name__ == "__main__":
    main()
