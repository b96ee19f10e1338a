"""The whole flow, top to bottom: a float model in, a checked int8 model out."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

import calibrators.errors
from calibrators.batching import batches
from calibrators.collect import collect
from calibrators.data import open_data
from calibrators.methods import CALIBRATORS, Calibrator
from calibrators.percentile import percentile
from calibrators.samples import Sample, input_specs
from calibrators.session import open_session
from calibrators.statistics import Statistics
from calibrators.synthetic import synthetic_samples
from onnxq.config import QuantConfig
from onnxq.errors import CalibrationError, ModelError, OnnxqError
from onnxq.evaluate import Quality, Speed, check_alike, compare, race
from onnxq.graph import all_nodes
from onnxq.insert import insert_qdq
from onnxq.model import check_place, check_valid, load, size_on_disk, write
from onnxq.passes import simplify
from onnxq.plan import QuantPlan
from onnxq.planner import make_plan, matches
from onnxq.ranges import check_weights, solve
from onnxq.samples import Samples
from onnxq.targets import get_target
from onnxq.verify import VERIFIERS

logger = logging.getLogger(__name__)

Data = str | os.PathLike[str] | Iterable[Any]

CPU = ("CPUExecutionProvider",)
SYNTHETIC_SAMPLES = 8
POOR_SQNR = 10.0
"""dB: below it the error holds more than a tenth of the power of the output itself."""


class Progress(Protocol):
    """Told as work goes on: what is being done, how many samples are done, of how many if known."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None: ...  # noqa: D102


def _silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """The progress of those who do not ask."""


@dataclass(frozen=True)
class QuantResult:
    """What came out.

    Attributes:
        plan: every quantized edge with its parameters, every float node with its reason.
        statistics: what calibration saw; any method's ranges follow from it.
        quality: against the float model; None if there was no sample to judge by.
        judged_on: what kind of samples ``quality`` was measured on.
        warnings: why the result should not be trusted, if so.
        float_bytes, int8_bytes: file sizes, external weights included.
        seconds: how long it took.
    """

    plan: QuantPlan
    statistics: Statistics
    quality: Quality | None
    judged_on: str
    warnings: tuple[str, ...]
    float_bytes: int
    int8_bytes: int
    seconds: float


def quantize_static(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = _silent,
) -> QuantResult:
    """Quantize ``model`` with ranges from ``data`` and write it to ``output``, whole or not at all.

    Args:
        model: path of a float ONNX model.
        output: path of the int8 model to write.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches.
        config: the options; defaults if None.
        progress: told how far the work is.

    Raises:
        OnnxqError: with one clear message; ``output`` is then as it was before.
    """
    started = time.perf_counter()
    config = config or QuantConfig()
    data = config.data if data is None else data
    check_places((model, data, config.from_table), [p for p in (output, config.save_statistics) if p])
    with _our_errors():
        progress("reading the model")
        simple, plan = prepare(model, config)
        samples = _open_samples(simple, data, config)
        statistics = _statistics(simple, plan, samples, config, progress)
        progress("choosing ranges")
        plan = solve(simple, plan, statistics, _calibrator(config))
        progress("writing and checking the model")
        checks = _Checks(model, plan, list(_batches(simple, samples.to_judge, config)), config.threads)
        write(insert_qdq(simple, plan), output, validate=checks.run)
    return QuantResult(
        plan=plan,
        statistics=statistics,
        quality=checks.quality,
        judged_on=_judged_on(samples),
        warnings=tuple(_doubts(samples, checks)),
        float_bytes=size_on_disk(model),
        int8_bytes=size_on_disk(output),
        seconds=time.perf_counter() - started,
    )


def prepare(model: str | os.PathLike[str], config: QuantConfig) -> tuple[ir.Model, QuantPlan]:
    """The cleaned model and the plan for it, still without parameters.

    Raises:
        ModelError: the model cannot be read, is quantized already, or has nothing to quantize.
        TargetError: the target is unknown or does not take the asked types.
    """
    target = get_target(config.target)
    original = load(model)
    _check_is_float(original, model)
    with _judged(model):
        simple = simplify(original)
        _check_patterns(simple, config)
        plan = make_plan(simple, target, config)
    if not plan.points:
        reasons = "; ".join(list(dict.fromkeys(node.reason for node in plan.floats.values()))[:3])
        raise ModelError(
            f"{model}: nothing to quantize for target {target.name}: "
            f"{reasons or 'no node computes real numbers'}."
        )
    check_weights(simple, plan)
    return simple, plan


def compare_files(
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    config: QuantConfig,
    progress: Progress = _silent,
) -> tuple[Quality, Speed]:
    """How close and how fast ``int8_path`` is, on ``config.data`` (synthetic inputs without it).

    Raises:
        OnnxqError: a model or the data cannot be used.
    """
    with _our_errors():
        model = load(float_path)
        check_alike(model, load(int8_path))
        samples = _open_samples(model, config.data, config)
        if samples.synthetic:
            logger.warning("compared on synthetic inputs, which say little: give real samples as data")
        batch = next(_batches(model, samples.source, config))
        quality = compare(
            float_path,
            int8_path,
            _batches(model, samples.source, config),
            providers=config.provider or CPU,
            threads=config.threads,
            on_sample=lambda done: progress("comparing", done, samples.total),
        )
        progress("timing")
        return quality, race(float_path, int8_path, batch, threads=config.threads or 1)


def check_places(read: Iterable[object], written: Sequence[str | os.PathLike[str]]) -> None:
    """Fail before the work, not after it: files to be written can be, and are none of those that are read.

    What in ``read`` is no path is passed over.

    Raises:
        ModelError: a file cannot be written, or would overwrite another one.
    """
    goals = [Path(path) for path in written]
    taken = [Path(path) for path in read if isinstance(path, str | os.PathLike)]
    for goal in goals:
        check_place(goal)
        if clash := next((path for path in taken if _same(path, goal)), None):
            raise ModelError(f"{goal}: would overwrite {clash}, which is needed: give another name.")
        taken.append(goal)


def _same(one: Path, other: Path) -> bool:
    """The same file, whatever it is called; also if it is not there yet."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return one.resolve() == other.resolve()


def _check_patterns(model: ir.Model, config: QuantConfig) -> None:
    for pattern in (*config.exclude, *config.include):
        if not any(matches(node, pattern) for node in all_nodes(model)):
            logger.warning(
                "pattern %r matches no node of the cleaned model: a typo? 'onnxq inspect' lists them", pattern
            )


def _check_is_float(model: ir.Model, path: str | os.PathLike[str]) -> None:
    quantized = {
        "QuantizeLinear",
        "DequantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
    }
    for node in all_nodes(model):
        if node.op_type in quantized:
            raise ModelError(
                f"{path}: already quantized (node {node.name!r} is a {node.op_type}); give the float model."
            )


def _open_samples(model: ir.Model, data: Data | None, config: QuantConfig) -> Samples:
    inputs = input_specs(model)
    if config.from_table is not None:
        return Samples((), 0)
    if data is not None:
        source = open_data(data, inputs, preprocess=config.preprocess, limit=config.samples)
        return Samples(source, source.total)
    count = config.samples or SYNTHETIC_SAMPLES
    return Samples(synthetic_samples(model, inputs, count, config.seed), count, synthetic=True)


def _statistics(
    model: ir.Model, plan: QuantPlan, samples: Samples, config: QuantConfig, progress: Progress
) -> Statistics:
    if config.from_table is not None:
        return Statistics.load(config.from_table)
    statistics = collect(
        model,
        plan.observed,
        ((batch.name, batch.feeds) for batch in _batches(model, samples, config)),
        providers=config.provider or CPU,
        threads=config.threads,
        on_batch=lambda done: progress("calibrating", done + samples.held, samples.total),
    )
    if config.save_statistics is not None:
        statistics.save(config.save_statistics)
    return statistics


def _batches(model: ir.Model, samples: Iterable[Sample], config: QuantConfig) -> Iterator[Sample]:
    return batches(samples, input_specs(model), config.batch_size)


def _calibrator(config: QuantConfig) -> Calibrator:
    if config.method == "percentile":
        return partial(percentile, percentile=config.percentile)
    return CALIBRATORS[config.method]


def _judged_on(samples: Samples) -> str:
    if samples.synthetic:
        return "synthetic inputs"
    return "held-out samples" if samples.independent else "the calibration samples themselves"


@dataclass
class _Checks:
    """What the runtime says of the written model before it gets its name; the answers stay here."""

    float_model: str | os.PathLike[str]
    plan: QuantPlan
    judge: list[Sample]
    threads: int
    quality: Quality | None = None
    unfused: tuple[str, ...] = ()

    def run(self, draft: Path) -> None:
        """Load the model, compare it with the float one, ask which nodes run in float after all."""
        quality = compare(self.float_model, draft, self.judge, threads=self.threads)
        self.quality = quality if self.judge else None
        if verifier := VERIFIERS.get(self.plan.target):
            self.unfused = verifier(draft, self.plan.nodes)


def _doubts(samples: Samples, checks: _Checks) -> Iterator[str]:
    """Why the result should not be trusted."""
    if samples.synthetic:
        yield (
            "NO CALIBRATION DATA: ranges come from synthetic inputs and the accuracy is UNKNOWN. "
            "Give real samples with --data."
        )
    if checks.unfused:
        yield (
            f"{len(checks.unfused)} nodes that should run in integers run in float on this ONNX Runtime: "
            f"{', '.join(checks.unfused[:5])}. The model is right, but slower than it could be."
        )
    for name, output in (checks.quality.outputs if checks.quality else {}).items():
        if not output.finite:
            yield f"output {name!r} of the quantized model holds NaN or infinite numbers"
        elif not math.isnan(output.sqnr) and output.sqnr < POOR_SQNR:
            yield (
                f"output {name!r} is far from the float model's: SQNR {output.sqnr:.1f} dB. "
                "Try another --method, or keep sensitive nodes float with --exclude."
            )


@contextmanager
def _judged(model: str | os.PathLike[str]) -> Iterator[None]:
    """What nobody foresaw may be the model's fault: ask onnx's checker, and the runtime to load it."""
    try:
        yield
    except OnnxqError:
        raise
    except Exception:
        check_valid(model, f"{model}: the model is not valid ONNX")
        with _our_errors():
            open_session(model)
        raise


@contextmanager
def _our_errors() -> Iterator[None]:
    """The calibrators stand alone and have an error class of their own: make it one of ours."""
    try:
        yield
    except calibrators.errors.CalibrationError as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(str(error)) from error
