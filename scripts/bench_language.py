"""Language models in few bits: what onnxq makes of a real one, beside the peers, in the same run.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed. MODELS
is a folder with an export of a language model and its tokenizer: ``model.onnx``, ``tokenizer.json``;
optionally ``past/model.onnx`` with a cache of keys and values, and ``half/model.onnx`` in float16.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import language_models as language
import numpy as np
import tiny_transformers
from language_models import Ids, Quality
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import bench
import onnxq
from measure import Run, measured
from onnxq.core.config import QuantConfig
from onnxq.core.errors import OnnxqError

FLOAT_ENDS = ("--exclude", "op:Gather")
"""Embedding table and last matrix stay float: both are one tensor, so that a Gather that stays keeps both."""

LARGE = 6.0
"""Gigabytes of the made-up model."""

Goals = Mapping[str, Callable[["Row"], bool]]


@dataclass(frozen=True)
class Row:
    """A quantized model.

    Attributes:
        name: how it was made.
        run: seconds and memory; None for the float model.
        found: what is left of the model; None if it was not compared.
        size: in MB.
        goals: words -> whether it is reached.
    """

    name: str
    run: Run | None
    found: Quality | None
    size: float
    goals: Goals = field(default_factory=dict)

    @property
    def missed(self) -> list[str]:
        """The goals that are missed."""
        return [words for words, met in self.goals.items() if not met(self)]

    def cells(self) -> list[str]:
        """The row as text."""
        found, run = self.found, self.run
        quality, cost = ["–"] * 3, ["–"] * 3
        if found is not None:
            quality = [f"{found.perplexity:.2f}", f"{found.divergence:.3f}", f"{100 * found.equal:.1f} %"]
        if run is not None:
            cost = [f"{run.seconds:.0f} s", f"{run.processor_seconds:.0f} s", f"{run.megabytes:.0f} MB"]
        return [self.name, *quality, f"{self.size:.0f} MB", *cost, ", ".join(self.missed)]


HEADINGS = ("", "perplexity", "KL", "same token", "size", "time", "processor", "memory", "missed")


@dataclass(frozen=True)
class Bench:
    """What the sections need.

    Attributes:
        models: the folder of the float models.
        shared: the evaluation data.
        work: the working folder.
        skip: peers that are left out.
    """

    models: Path
    shared: Path
    work: Path
    skip: tuple[str, ...]
    reference: list[NDArray[np.float32]] = field(default_factory=list)

    @cached_property
    def test(self) -> list[Ids]:
        """Token ids to compare on."""
        return language.pieces(self.shared, self.models / "tokenizer.json", "test")

    @cached_property
    def train(self) -> Path:
        """The file of token ids to quantize with."""
        ids = np.concatenate(language.pieces(self.shared, self.models / "tokenizer.json", "train"))
        path = self.work / "train.npz"
        np.savez(path, input_ids=ids)
        return path

    def ours(self, name: str, *options: str, goals: Goals | None = None, model: str = "model.onnx") -> Row:
        """Quantize with onnxq's command line, and compare."""
        output = self.work / f"{len(list(self.work.iterdir()))}.onnx"
        command = [sys.executable, "-m", "onnxq.cli", "quantize", str(self.models / model), str(output)]
        run = measured([*command, "--mode", "weight-only", "--quiet", *options])
        return self.row(name, output, run, goals)

    def peer(self, way: str) -> Row:
        """Quantize with the peer, and compare."""
        output = self.work / f"{way}.onnx"
        script = Path(__file__).with_name("peer_language.py")
        run = measured([sys.executable, str(script), str(self.models / "model.onnx"), str(output), way])
        return self.row(f"onnxruntime.quantization, {way}", output, run)

    def float_row(self) -> Row:
        """The float model, which is the reference of all others."""
        return self.row("float", self.models / "model.onnx", None)

    def row(self, name: str, path: Path, run: Run | None, goals: Goals | None = None) -> Row:
        """Compare a model with the reference."""
        if not self.reference and path != self.models / "model.onnx":
            self.float_row()
        found = language.quality(path, self.test, self.reference)
        return Row(name, run, found, language.size_of(path), goals or {})


def _at_most(what: str, limit: float) -> Goals:
    measures: Mapping[str, Callable[[Row], float]] = {
        "KL": lambda row: row.found.divergence if row.found else np.inf,
        "perplexity": lambda row: row.found.perplexity if row.found else np.inf,
        "s": lambda row: row.run.seconds if row.run else np.inf,
        "MB of memory": lambda row: row.run.megabytes if row.run else np.inf,
        "MB": lambda row: row.size,
    }
    return {f"{what} ≤ {limit:g}": lambda row: measures[what](row) <= limit}


def blind(place: Bench) -> Iterator[list[str]]:
    """4 bits in blocks of 32 without data; embedding and last matrix float."""
    yield place.float_row().cells()
    for way in ("rtn", "symmetric", "hqq"):
        if way not in place.skip:
            yield place.peer(way).cells()
    goals = {**_at_most("KL", 0.23), **_at_most("perplexity", 17.5), **_at_most("s", 15)}
    yield place.ours("onnxq", *FLOAT_ENDS, goals={**goals, **_at_most("MB of memory", 800)}).cells()


def data(place: Bench) -> Iterator[list[str]]:
    """The same with 24 x 256 tokens, and everything quantized."""
    goals = {**_at_most("KL", 0.15), **_at_most("perplexity", 16.5), **_at_most("s", 150)}
    ids = ("--data", str(place.train))
    goals |= _at_most("MB of memory", 2000)
    yield place.ours("onnxq, with data", *FLOAT_ENDS, *ids, goals=goals).cells()
    yield place.ours("onnxq, one 8-bit table, without data", goals=_at_most("MB", 101)).cells()
    all_goals = {**_at_most("MB", 101), **_at_most("KL", 0.16)}
    yield place.ours("onnxq, one 8-bit table, with data", *ids, goals=all_goals).cells()


def goal(place: Bench) -> Iterator[list[str]]:
    """Bits by measurement, beside the rule of thumb of onnxruntime-genai's builder."""
    rule = place.peer("mixed")
    yield rule.cells()
    ids = ("--data", str(place.train))
    yield place.ours("onnxq, kl<=0.05", *ids, "--goal", "kl<=0.05", goals=_at_most("KL", 0.06)).cells()
    if rule.found is not None:
        wanted = f"kl<={rule.found.divergence:.3f}"
        goals = _at_most("MB", rule.size)
        yield place.ours(f"onnxq, {wanted}", *FLOAT_ENDS, *ids, "--goal", wanted, goals=goals).cells()


def variants(place: Bench) -> Iterator[list[str]]:
    """The exports in float16 and with a cache."""
    for name in ("half", "past"):
        model = f"{name}/model.onnx"
        if not (place.models / model).exists():
            yield [f"{name}: {place.models / model} is missing", *[""] * (len(HEADINGS) - 1)]
            continue
        yield place.row(f"{name}, float", place.models / model, None).cells()
        row = place.ours(f"{name}, onnxq", *FLOAT_ENDS, model=model, goals=_at_most("KL", 0.27))
        yield row.cells()
        if name == "past":
            newest = max(place.work.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
            exact = language.with_float_kernels(newest, place.work / "exact.onnx")
            error, rounded = (language.cache_error(path, place.test[0]) for path in (exact, newest))
            told = (
                f"prefill and decode, beside one pass: {error:.1e} of the largest logit; with activations in "
                f"8 bits, which ONNX Runtime rounds otherwise for one row than for many: {rounded:.1e}"
            )
            yield [told, *[""] * 7, "" if error < 1e-3 else "differs"]


def speed(place: Bench) -> Iterator[list[str]]:
    """Milliseconds of a decode step (1 token, 256 past) and of a prefill (256), timed in turns."""
    past, ours = place.models / "past" / "model.onnx", place.work / "fast.onnx"
    model = past if past.exists() else place.models / "model.onnx"
    peer = place.work / "peer.onnx"
    script = Path(__file__).with_name("peer_language.py")
    measured(
        [
            sys.executable,
            "-m",
            "onnxq.cli",
            "quantize",
            str(model),
            str(ours),
            "--mode",
            "weight-only",
            "--quiet",
        ]
    )
    measured([sys.executable, str(script), str(model), str(peer), "rtn"])
    for threads in (1, 2):
        for name, length in (("decode", 1), ("prefill", 256)):
            before, theirs, mine = language.speeds(
                [model, peer, ours], threads, 256 if length == 1 else 0, length, 30 if length == 1 else 8
            )
            missed = [] if mine <= 1.05 * theirs else ["slower than the peer's"]
            missed += ["less than 2 x float"] if name == "decode" and mine > before / 2 else []
            text = (
                f"{name}, {threads} threads: float {before:.1f} ms, peer {theirs:.1f} ms, onnxq {mine:.1f} ms"
            )
            yield [text, *[""] * 7, ", ".join(missed)]


def large(place: Bench) -> Iterator[list[str]]:
    """A made-up model of 6 GB in float32: seconds per GB and peak memory."""
    path, output = place.work / "large.onnx", place.work / "large4.onnx"
    try:
        language.make_large(path, LARGE)
        size = language.size_of(path)
        command = [sys.executable, "-m", "onnxq.cli", "quantize", str(path), str(output)]
        run = measured([*command, "--mode", "weight-only", "--quiet"])
        goals: Goals = {
            "≤ 8 s per GB": lambda row: run.seconds <= 8 * size / 1000,
            **_at_most("MB of memory", 1500),
        }
        name = f"onnxq, {size / 1000:.1f} GB: {1000 * run.seconds / size:.1f} s per GB"
        yield Row(name, run, None, language.size_of(output), goals).cells()
    finally:
        for file in place.work.glob("large*"):
            file.unlink()


def kinds(place: Bench) -> Iterator[list[str]]:
    """Transformers of every kind with random weights: dB beside float, in all modes and for all targets."""
    static = {"mode": "static", "time_limit": 10.0, "autotune": "off"}
    for kind in tiny_transformers.KINDS:
        for path in tiny_transformers.export(kind, place.work):
            cells, missed = list[str](), list[str]()
            for mode, target in MODES:
                options = static if mode == "static" else {"mode": mode}
                config = QuantConfig(target=target, **options)
                output = place.work / f"{path.stem}.{mode}.{target}.onnx"
                try:
                    result = QUANTIZE[mode](path, output, config=config)
                except OnnxqError as error:
                    missed.append(f"{mode} {target}: {error}")
                    continue
                cells.append("–" if result.quality is None else f"{result.quality.sqnr:.0f}")
                missed += [] if result.quality else [f"{mode} {target}: not compared"]
            yield [f"{path.stem}: {', '.join(cells)} dB", *[""] * 7, "; ".join(missed)]


MODES = (
    *(("weight-only", "onnxruntime"), ("dynamic", "onnxruntime"), ("static", "onnxruntime")),
    *(("static", "qnn"), ("static", "openvino"), ("static", "tensorrt")),
)
"""Mode and target of the columns of `kinds`."""

QUANTIZE: Mapping[str, Callable[..., onnxq.QuantResult]] = {
    "weight-only": onnxq.quantize_weights,
    "dynamic": onnxq.quantize_dynamic,
    "static": onnxq.quantize_static,
}

SECTIONS: Mapping[str, Callable[[Bench], Iterator[list[str]]]] = {
    "blind": blind,
    "data": data,
    "goal": goal,
    "variants": variants,
    "speed": speed,
    "large": large,
    "kinds": kinds,
}


def main() -> int:
    """Measure the sections of the command line; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, help="the folder of the float models")
    parser.add_argument(
        "--skip", nargs="*", default=[], help="peers to leave out: rtn, symmetric, hqq (minutes)"
    )
    given = bench.arguments(parser, SECTIONS)
    sections = given.sections or SECTIONS
    if given.models is None and set(sections) - {"large", "kinds"}:
        parser.error("give the folder of the float models with --models")
    met, reference = True, list[NDArray[np.float32]]()
    with tempfile.TemporaryDirectory() as folder:
        for name in sections:
            work = Path(given.keep or folder) / name
            work.mkdir(parents=True)
            place = Bench(given.models, given.data, work, tuple(given.skip), reference)
            title = (SECTIONS[name].__doc__ or "").splitlines()[0]
            table = Table(*HEADINGS, title=f"{name}: {title}", title_justify="left")
            for cells in SECTIONS[name](place):
                table.add_row(*cells)
                print(" | ".join(cells), file=sys.stderr, flush=True)
                met &= not cells[-1]
            Console(width=160).print(table)
            if not given.keep:
                shutil.rmtree(work)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
