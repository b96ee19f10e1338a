"""What the measurements for a report are made on, and what they give; each says why, if it gives nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import onnx_ir as ir

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError
from onnxq.algorithms.autotune.apply import measurable
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.graph.half_precision.narrow import Narrowing
from onnxq.pipelines.report.evidence.kernel_times import KernelTimes, kernel_times
from onnxq.pipelines.report.evidence.layer_error import TensorError, layer_errors
from onnxq.pipelines.report.evidence.outline import Outline, outline
from onnxq.pipelines.report.evidence.sample_outcomes import SampleOutcomes, sample_outcomes
from onnxq.pipelines.report.evidence.weight_values import WeightValues, weight_values
from onnxq.verify.accuracy import AccuracyEvaluator

logger = logging.getLogger(__name__)

BATCHES = 4
"""The largest number of held-out batches to measure errors by layer on."""

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class Material:
    """Both models, and the samples to compare them on.

    Attributes:
        reference: the float model that was quantized: cleaned, and equalized if that helped.
        quantized: the quantized model as it is written.
        plan: the plan, with parameters.
        evaluator: holds the samples, which have been evaluated before.
        config: the options.
        narrowing: what is written in half precision; None: nothing.
    """

    reference: ir.Model
    quantized: ir.Model
    plan: QuantPlan
    evaluator: AccuracyEvaluator
    config: QuantConfig
    narrowing: Narrowing | None = None


@dataclass(frozen=True)
class Evidence:
    """What the measurements gave; None where one was not made.

    Attributes:
        layers: the error of each tensor, in graph order.
        times: the times of kernels before and after.
        samples: the samples with other decisions, or with the largest errors.
        weights: the values of the quantized constants, by the name of their group.
        outline: the graph and the type of each node.
        missing: measurement -> why it was not made.
    """

    layers: tuple[TensorError, ...] | None = None
    times: KernelTimes | None = None
    samples: SampleOutcomes | None = None
    weights: dict[str, WeightValues] | None = None
    outline: Outline | None = None
    missing: dict[str, str] = field(default_factory=dict)


def gather_evidence(material: Material) -> Evidence | None:
    """Measure all, if a report is wanted; a measurement that fails is logged, and leaves the result alone."""
    if material.config.report is None:
        return None
    missing: dict[str, str] = {}

    def tried(name: str, measure: Callable[[Material], _Found]) -> _Found | None:
        return attempt(name, lambda: measure(material), missing)

    return Evidence(
        layers=tried("layers", _layers),
        times=tried("times", _times),
        samples=tried("samples", _samples),
        weights=tried("weights", lambda its: weight_values(its.reference, its.plan)),
        outline=tried("outline", lambda its: outline(its.reference, its.plan, its.narrowing)),
        missing=missing,
    )


def attempt(name: str, measure: Callable[[], _Found], missing: dict[str, str]) -> _Found | None:
    """Measure what a section of the report shows; where that fails, note in ``missing`` why, by its name.

    A report is about a model that is good and written: without one of its sections it is worth having.
    """
    try:
        return measure()
    except CalibrationError as error:
        missing[name] = str(error)
    except Exception as error:
        missing[name] = f"the measurement failed ({type(error).__name__}: {error})"
        logger.warning("report: %s: %s", name, missing[name])
        logger.debug("where it failed", exc_info=True)
    return None


def _layers(material: Material) -> tuple[TensorError, ...]:
    batches = _with_samples(material)[:BATCHES]
    config = material.config
    return layer_errors(
        material.reference, material.quantized, material.plan, batches, (config.providers, config.threads)
    )


def _times(material: Material) -> KernelTimes:
    if not measurable(material.config):
        raise CalibrationError(
            f"target {material.config.target} does not run on this machine, or not on the CPU provider of "
            "ONNX Runtime: its own profiler tells"
        )
    sample = _with_samples(material)[0]
    return kernel_times(material.reference, material.quantized, sample, material.config.threads)


def _samples(material: Material) -> SampleOutcomes:
    _with_samples(material)
    return sample_outcomes(material.evaluator, material.quantized)


def _with_samples(material: Material) -> list[Sample]:
    if not material.evaluator.samples:
        raise CalibrationError("there are no samples to measure on")
    return material.evaluator.samples
