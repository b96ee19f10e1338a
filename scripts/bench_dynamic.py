"""Compare dynamic quantization, without data, with `onnxruntime.quantization.quantize_dynamic`.

Prints a table for each given section (all of them by default) and exits with 1 if a goal is missed.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import bench
import cases
import evaldata
from bench import Figure, Floats, Place, Sections, at_least, at_most, exactly
from calibrators.data.samples import Sample
from calibrators.session import open_session
from cases import Feeds
from measure import measured
from onnxq.core.numerics import sqnr
from onnxq.verify.latency import time_interleaved
from onnxq.verify.onnxruntime import kernels

if TYPE_CHECKING:
    import torch

RACE_ROUNDS, SECONDS = 5, 2.0
"""Number of races of the same two models, and the duration of each in seconds."""

FRAMES, FEATURES, HIDDEN = 64, 128, 128
"""Sizes of the recurrent networks: frames of a sound, width of each spectrum, width of both hidden layers."""


@dataclass(frozen=True)
class Contest:
    """The float model, ours and the peer's, with their outputs on the same batches.

    Attributes:
        models: float, ours, peer.
        outputs: the first output of each.
        seconds: duration of our command.
    """

    models: tuple[Path, Path, Path]
    outputs: tuple[Floats, Floats, Floats]
    seconds: float

    def speeds(self, sample: Sample) -> tuple[float, float, float]:
        """Measure the speed of ours and of the peer's relative to float, and of ours relative to the peer's.

        Two models run in turns, on one thread. Of three in turns, the one after the float model would always
        find the caches full of float weights. The result is the median over rounds of the median ratio of
        turns.
        """
        pairs = ((0, 1), (0, 2), (2, 1))
        ours, peer, lead = np.median(
            [[self._round(sample, *pair) for pair in pairs] for _ in range(RACE_ROUNDS)], 0
        )
        return float(ours), float(peer), float(lead)

    def _round(self, sample: Sample, one: int, other: int) -> float:
        """Run one round with new sessions: their speed depends on their memory layout."""
        sessions = [open_session(self.models[index], threads=1, exact=False) for index in (one, other)]
        times = time_interleaved(sessions, sample, seconds=SECONDS)
        return float(np.median(times[:, 0] / times[:, 1]))

    def sizes(self) -> tuple[float, float]:
        """File sizes of ours and of the peer's, as a share of the float model's."""
        whole, ours, peer = (path.stat().st_size for path in self.models)
        return ours / whole, peer / whole

    def sqnrs(self) -> tuple[float, float]:
        """SQNR of ours and of the peer's, in dB."""
        reference, ours, peer = self.outputs
        return sqnr(reference, ours), sqnr(reference, peer)


def minilm(place: Place) -> list[Figure]:
    """The sentence encoder on the STS-B test set; no data to quantize with."""
    case = cases.minilm(place.shared, place.work / "data")
    contest = _contest(place, case.model, list(case.evaluation()), ("--skip-symbolic-shapes",))
    first, _, scores = evaldata.stsb(place.shared, "test")
    ranks = [evaldata.spearman(x[: len(first)], x[len(first) :], scores) for x in contest.outputs]
    speeds = contest.speeds(Sample("", next(evaldata.tokenized(first[:1]))))
    batch = contest.speeds(Sample("", next(evaldata.tokenized(first[:8], batch_size=8))))
    return [
        Figure("Spearman of the float model", ranks[0]),
        at_least("Spearman", ranks[1], 81.8, ranks[2]),
        _pair("SQNR of the embeddings, dB", contest.sqnrs()),
        at_least("speed, times the peer's, one sentence", speeds[2], 1.0, form="{:.3f}"),
        _pair("speed, times float, one sentence, one thread", speeds[:2]),
        _pair("speed, times float, eight sentences, one thread", batch[:2]),
        at_most("file size, of float", contest.sizes()[0], 0.26, contest.sizes()[1], "{:.3f}"),
        Figure("whole command, s", contest.seconds, form="{:.1f}"),
        *_kernels(contest.models[1]),
    ]


def lstm(place: Place) -> list[Figure]:
    """Two layers of LSTM over the frames of a sound, in ONNX Runtime's integer kernel."""
    contest = _contest(place, _recurrent(place, "LSTM"), list(_sounds(range(100, 110))))
    found = list(kernels(contest.models[1]).values())
    speeds = contest.speeds(Sample("", next(_sounds([100]))))
    return [
        exactly("layers in an integer kernel", found.count("DynamicQuantizeLSTM"), 2),
        at_least("SQNR, dB", contest.sqnrs()[0], 25, contest.sqnrs()[1]),
        _pair("speed, times float, one thread", speeds[:2]),
        _pair("file size, of float", contest.sizes()),
        *_kernels(contest.models[1]),
    ]


def gru(place: Place) -> list[Figure]:
    """Two layers of GRU, which has no integer kernel: weights are stored in int8."""
    contest = _contest(place, _recurrent(place, "GRU"), list(_sounds(range(100, 110))))
    speeds = contest.speeds(Sample("", next(_sounds([100]))))
    return [
        at_least("SQNR, dB", contest.sqnrs()[0], 25, contest.sqnrs()[1]),
        at_least("speed, times float, one thread", speeds[0], 0.95, speeds[1]),
        at_most("file size, of float", contest.sizes()[0], 0.3, contest.sizes()[1]),
        *_kernels(contest.models[1]),
    ]


def forms(place: Place) -> list[Figure]:
    """The sentence encoder with other weights, for other targets, and with attention in integers."""
    case = cases.minilm(place.shared, place.work / "data")
    batches = list(case.evaluation())[::10]
    reference = bench.outputs(case.model, batches)
    options = {
        "int8": (),
        "float16": ("--weight", "float16"),
        "per tensor": ("--per-tensor",),
        "without VNNI": ("--target", "onnxruntime-avx2"),
        "OpenVINO": ("--target", "openvino"),
        "attention too": ("--include", "*"),
    }
    figures = []
    for name, given in options.items():
        model = place.work / "form.onnx"
        _quantize(case.model, model, *given)
        figures.append(Figure(f"{name}: SQNR, dB", sqnr(reference, bench.outputs(model, batches))))
        size = model.stat().st_size / case.model.stat().st_size
        figures.append(Figure(f"{name}: file size, of float", size, form="{:.3f}"))
    return figures


SECTIONS: Sections = {"minilm": minilm, "lstm": lstm, "gru": gru, "forms": forms}


def _contest(
    place: Place, model: Path, batches: Sequence[Feeds], peer_options: Sequence[str] = ()
) -> Contest:
    """Quantize ``model`` with onnxq and with the peer, and run all three models."""
    ours, peer = place.work / "ours.onnx", place.work / "peer.onnx"
    seconds = _quantize(model, ours)
    script = str(Path(__file__).with_name("peer.py"))
    measured([sys.executable, script, str(model), str(peer), str(place.work), "--dynamic", *peer_options])
    one, two, three = (bench.outputs(path, batches) for path in (model, ours, peer))
    return Contest((model, ours, peer), (one, two, three), seconds)


def _quantize(model: Path, output: Path, *options: str) -> float:
    """Run onnxq's command line without data, and return its duration in seconds."""
    command = [sys.executable, "-m", "onnxq.quantize", str(model), str(output), "--mode", "dynamic"]
    return measured([*command, *options]).seconds


def _pair(name: str, values: tuple[float, float]) -> Figure:
    return Figure(name, values[0], peer=values[1])


def _kernels(model: Path) -> Iterator[Figure]:
    """Count the integer kernels that ONNX Runtime uses for the model."""
    found = list(kernels(model).values())
    for kind in sorted({name for name in found if "Integer" in name or "Quantize" in name}):
        yield Figure(f"{kind} kernels", found.count(kind), form="{:.0f}")


# --- recurrent networks ---------------------------------------------------------------------------


def _recurrent(place: Place, kind: str) -> Path:
    """Train a network, for some seconds, to detect where a tone begins in noise."""
    import torch

    torch.manual_seed(0)
    network = _network(getattr(torch.nn, kind))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        sounds, wanted = _batch(step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(sounds), wanted)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    path = place.work / "float.onnx"
    _export(network.eval(), path)
    return path


def _network(kind: Callable[..., torch.nn.Module]) -> torch.nn.Module:
    import torch

    class Detector(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent = kind(FEATURES, HIDDEN, num_layers=2, batch_first=True)
            self.head = torch.nn.Linear(HIDDEN, 1)

        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            hidden, _ = self.recurrent(frames)
            scores: torch.Tensor = self.head(hidden)
            return scores

    return Detector()


def _export(network: torch.nn.Module, path: Path) -> None:
    import torch

    logging.disable(logging.WARNING)
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(1, FRAMES, FEATURES),),
            path,
            dynamo=True,
            external_data=False,
            input_names=["frames"],
            output_names=["scores"],
            verbose=False,
        )


def _batch(seed: int, count: int = 8) -> tuple[Any, Any]:
    """Make sounds ``[count, FRAMES, FEATURES]`` and, for each frame, whether the tone is on."""
    import torch

    pairs = [_sound(1000 * (seed + 1) + index) for index in range(count)]
    sounds, wanted = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
    return sounds, wanted


def _sound(seed: int) -> tuple[Floats, Floats]:
    """Make a spectrum of noise, louder in low bands, in which some bands start to sound at some frame."""
    rng = np.random.default_rng(seed)
    noise = rng.gamma(2.0, 0.5, (FRAMES, FEATURES)) / np.sqrt(1 + np.arange(FEATURES) / 8)
    start, band = rng.integers(FRAMES), rng.integers(FEATURES - 8)
    on = np.arange(FRAMES) >= start
    noise[on, band : band + 8] += rng.uniform(0.5, 2.0)
    return np.log1p(noise).astype(np.float32), on[:, None].astype(np.float32)


def _sounds(seeds: Sequence[int]) -> Iterator[Feeds]:
    """Yield batches that the network was not trained on."""
    for seed in seeds:
        yield {"frames": _sound(seed)[0][None]}


if __name__ == "__main__":
    sys.exit(bench.run(__doc__, SECTIONS))
