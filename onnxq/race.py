"""How much faster a quantized model runs than its float original."""

from __future__ import annotations

import os
import statistics as stats
import time
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnxruntime as ort

from calibrators.samples import Sample
from calibrators.session import open_session

Model = ir.Model | str | os.PathLike[str]


@dataclass(frozen=True)
class Speed:
    """Median seconds a run of each model, and the median of their ratio pair by pair."""

    float_seconds: float
    int8_seconds: float
    ratio: float


def race(
    float_model: Model,
    int8_model: Model,
    sample: Sample,
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 1,
    seconds: float = 2.0,
) -> Speed:
    """Time both models in turns on one sample, so that what else the machine does hits both alike."""
    models = (float_model, int8_model)
    sessions = [open_session(model, providers=providers, threads=threads) for model in models]
    times: list[tuple[float, float]] = []
    _pair(sessions, sample)
    _pair(sessions, sample)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        times.append(_pair(sessions, sample))
    return Speed(
        stats.median(f for f, _ in times),
        stats.median(q for _, q in times),
        stats.median(f / q for f, q in times),
    )


def _pair(sessions: Sequence[ort.InferenceSession], sample: Sample) -> tuple[float, float]:
    marks = [time.perf_counter()]
    for session in sessions:
        session.run(None, dict(sample.feeds))
        marks.append(time.perf_counter())
    return marks[1] - marks[0], marks[2] - marks[1]
