"""A solved plan -> a draft that is closer to the float model: the corrections, and what they work with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import collect
from calibrators.errors import CalibrationError
from calibrators.samples import Sample
from calibrators.tensor_statistics import TensorStatistics
from calibrators.usable import OnBad
from onnxq.algorithms import Draft, Effect, Workbench, correct
from onnxq.algorithms.layers import channel_axes
from onnxq.algorithms.soft_rounding import check_torch
from onnxq.config import QuantConfig
from onnxq.evaluate import Judge
from onnxq.planner import make_plan
from onnxq.progress import Progress
from onnxq.ranges import calibrator, from_statistics, solve
from onnxq.samples import Samples, in_batches
from onnxq.targets import get_target


def check_correctable(config: QuantConfig) -> None:
    """Find out before the work whether what the corrections need is there.

    Raises:
        ConfigError: it is not.
    """
    if "adaround" in config.correct and "none" not in config.correct:
        check_torch()


def corrected(
    draft: Draft, samples: Samples, judge: Judge, config: QuantConfig, progress: Progress
) -> tuple[Draft, tuple[Effect, ...]]:
    """``draft`` with the corrections of ``config`` that help; none without samples to prove them on."""
    names = to_try(samples, config)
    if not names:
        return draft, ()
    return correct(draft, names, workbench(draft.exact, samples, judge, config, progress))


def to_try(samples: Samples, config: QuantConfig) -> tuple[str, ...]:
    """The names of the corrections of ``config``; none without samples to prove them on."""
    if samples.synthetic or not samples.independent or "none" in config.correct:
        return ()
    return config.correct


def judge_of(model: str | os.PathLike[str], simple: ir.Model, samples: Samples, config: QuantConfig) -> Judge:
    """Knows the original as the user has it, and the samples that nothing was fitted on."""
    return Judge(
        model,
        in_batches(samples.to_judge, simple, config),
        providers=config.providers,
        threads=config.threads,
        on_bad=samples.on_refused,
    )


def workbench(
    model: ir.Model, samples: Samples, judge: Judge, config: QuantConfig, progress: Progress
) -> Workbench:
    """What corrections of ``model`` work with."""
    again = samples.on_refused if samples.refused is None else _passed_over
    fit = list(in_batches(samples.to_fit, model, config))
    return Workbench(
        fit=fit,
        judge=judge,
        recalibrate=partial(_recalibrated, fit=fit, config=config, progress=progress, on_bad=again),
        providers=config.providers,
        threads=config.threads,
        seed=config.seed,
        time_limit=config.time_limit,
        progress=progress,
        on_bad=again,
    )


def _passed_over(error: CalibrationError, samples: int) -> None:
    """What calibration has told of already."""


def channel_means(statistics: Mapping[str, TensorStatistics]) -> dict[str, NDArray[np.float64]]:
    """The means of the channels of each tensor that they were gathered of, ``[C]``."""
    return {name: t.channels.value for name, t in statistics.items() if t.channels is not None}


def _recalibrated(
    model: ir.Model, fit: list[Sample], config: QuantConfig, progress: Progress, on_bad: OnBad | None = None
) -> Draft:
    """A plan for ``model`` as for the original, with ranges from ``fit``."""
    plan = make_plan(model, get_target(config.target), config)
    channels = channel_axes(model, plan)
    statistics = collect(
        model,
        [*plan.observed, *channels],
        fit,
        on_batch=lambda done: progress("calibrating again", done),
        channels=channels,
        every_element=config.every_element,
        providers=config.providers,
        threads=config.threads,
        on_bad=on_bad,
    )
    plan = solve(model, plan, from_statistics(statistics, calibrator(config)))
    return Draft(model, model, plan, channel_means(statistics))
