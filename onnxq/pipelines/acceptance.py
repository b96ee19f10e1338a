"""Check a written model before it gets its final name: it loads, is accurate, uses integers, and is faster.

`accept` checks any written model, static or dynamic; the warnings that follow from the result are here too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from calibrators.errors import CalibrationError, shorten
from calibrators.session import open_session, saturates
from onnxq.algorithms.autotune.apply import CPU_PROVIDER, runs_here, timing_sample
from onnxq.algorithms.context import CorrectionContext
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError
from onnxq.core.floor import GOOD_SQNR, Floor
from onnxq.core.plan import QuantPlan
from onnxq.graph.files import constant_bytes, load, size_on_disk
from onnxq.graph.half_precision.simulate import runnable
from onnxq.graph.nodes import name_of
from onnxq.targets.lookup import get_target
from onnxq.targets.onnxruntime import ONNXRUNTIME
from onnxq.verify.accuracy import AccuracyEvaluator, Quality
from onnxq.verify.checkers import ask_runtimes
from onnxq.verify.latency import NEGLIGIBLE_SECONDS, Speed, significantly_faster, time_interleaved
from onnxq.verify.legality import LEGALITY, check
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Verdict

logger = logging.getLogger(__name__)

_FLOOR = Floor()
"""Warnings do not depend on the options: no floor is no reason to say nothing."""

BUILD_SECONDS = {"auto": 60.0, "full": 3600.0, "off": 0.0}
"""How long a runtime may take to build the model, by `QuantConfig.verify`."""

VERIFIED_ON = 2
"""Samples that a runtime runs the model on."""

NAMED = 3
"""The number of broken rules that a message names."""

NO_DATA = (
    "NO CALIBRATION DATA: ranges come from synthetic inputs and the accuracy is UNKNOWN. "
    "Give real samples with --data."
)

MOSTLY_FLOAT = 0.9
"""Share of the bytes of all weights: if more are kept in float, users would not call the model quantized."""

SATURATED = 1.0
"""By how many dB a model must be worse where kernels saturate; a warning also needs less than `GOOD_SQNR`."""

RACE_SECONDS, LEAST_TURNS, MOST_TURNS = 0.3, 3, 50
"""Duration of the final speed check, and its least and greatest number of turns."""


@dataclass(frozen=True)
class Acceptance:
    """The result of the acceptance check of one written model.

    Attributes:
        quality: accuracy against the original; None if no sample could be evaluated.
        verdicts: what the target's rules and its runtimes say.
        speed: of the model and its original; None if nothing was timed.
        is_slower: whether it is significantly slower than its original.
        size: bytes of the file, external weights included.
        constants: bytes of its constants.
        here: the accuracy on this processor; None if its integer kernels are exact, or do not run the model.
    """

    quality: Quality | None
    verdicts: tuple[Verdict, ...]
    speed: Speed | None = None
    is_slower: bool = False
    size: int = 0
    constants: int = 0
    here: Quality | None = None


def accept(
    draft: Path, evaluator: AccuracyEvaluator, verify: Callable[[Path], Iterable[Verdict]]
) -> Acceptance:
    """Load a written model, verify it, and compare it with the original.

    Args:
        draft: the temporary file of the model.
        evaluator: holds the original and the samples to compare on.
        verify: returns the verdicts on the file.

    Raises:
        CalibrationError: a model does not load, or does not take a sample.
        ModelError: ``verify`` finds that the target does not take the model.
    """
    quality = evaluator.evaluate(runnable(draft))
    verdicts = tuple(verify(draft))
    return Acceptance(
        quality if quality.samples else None,
        verdicts,
        size=size_on_disk(draft),
        constants=constant_bytes(draft),
    )


def with_quality_here(
    accepted: Acceptance, draft: Path, plan: QuantPlan, evaluator: AccuracyEvaluator
) -> Acceptance:
    """Add the accuracy on this processor to ``accepted``, if its integer kernels saturate.

    Args:
        accepted: the result of the other checks.
        draft: the file.
        plan: the plan that it was made from.
        evaluator: holds the original and the samples to compare on.
    """
    exact = plan.target != ONNXRUNTIME.name or not plan.integer_nodes or not saturates()
    if accepted.quality is None or exact:
        return accepted
    return replace(accepted, here=evaluator.as_deployed().evaluate(draft))


def with_speed(
    accepted: Acceptance, draft: Path, reference: ir.Model, context: CorrectionContext
) -> Acceptance:
    """Add the final speed check to ``accepted``: time the file against its original.

    Nothing is timed if another runtime runs the target, or if there are no samples and nothing was tuned.

    Args:
        accepted: the result of the other checks.
        draft: the file.
        reference: the float model, cleaned: its inputs determine how samples are batched.
        context: holds the original, the samples and the options.
    """
    config, original = context.config, context.evaluator.float_model
    has_sample = bool(context.samples.given) or config.autotune != "off"
    if not has_sample or not runs_here(config) or config.providers != (CPU_PROVIDER,):
        return accepted
    sessions = [open_session(model, threads=config.threads, exact=False) for model in (original, draft)]
    try:
        sample = timing_sample(sessions[0], reference, context)
    except CalibrationError as error:  # the model is good, only its speed stays unknown
        logger.info("not timed: %s", error)
        return accepted
    times = time_interleaved(sessions, sample, seconds=RACE_SECONDS, least=LEAST_TURNS, most=MOST_TURNS)
    return replace(accepted, speed=Speed.of(times), is_slower=significantly_faster([times], 0, 1))


def accept_static(
    draft: Path, plan: QuantPlan, reference: ir.Model, context: CorrectionContext
) -> Acceptance:
    """Run the acceptance check of a static model: accuracy, rules, runtimes, speed.

    Args:
        draft: the temporary file of the model.
        plan: the plan that it was made from.
        reference: the float model, cleaned.
        context: holds the original, the samples and the options.

    Raises:
        CalibrationError: a model does not load, or does not take a sample.
        ModelError: the model breaks rules of its target, which is a bug in onnxq; or ``--strict``, and the
            result should not be trusted.
    """
    accepted = accept(
        draft, context.judge, lambda path: verify_static(path, plan, context.config, context.evaluator)
    )
    check_trusted(accepted, context)
    accepted = with_quality_here(accepted, draft, plan, context.evaluator)
    return with_speed(accepted, draft, reference, context)


def check_trusted(accepted: Acceptance, context: CorrectionContext) -> None:
    """Check with ``--strict`` that the result of the acceptance check can be trusted.

    Raises:
        ModelError: it cannot; the message says why.
    """
    if context.config.strict:
        refuse_doubts(accepted, synthetic=context.samples.synthetic)


def refuse_doubts(accepted: Acceptance, *, synthetic: bool) -> None:
    """Refuse a model whose accuracy is unknown or below the floor, or that a runtime does not run as planned.

    Args:
        accepted: the result of its acceptance check.
        synthetic: whether it was measured on synthetic inputs.

    Raises:
        ModelError: there are doubts; the message says which.
    """
    doubts = [*verdict_warnings(accepted.verdicts), *output_warnings(accepted.quality, "")]
    doubts = [NO_DATA, *doubts] if synthetic else doubts
    if doubts:
        raise ModelError(f"--strict, so nothing is written: {'; '.join(map(str.strip, doubts))}")


def verify_static(
    draft: Path, plan: QuantPlan, config: QuantConfig, evaluator: AccuracyEvaluator
) -> Iterator[Verdict]:
    """Yield the verdicts on a model with Q/DQ: legality, then the runtimes of the target.

    Args:
        draft: the file.
        plan: the plan that it was made from.
        config: the target, and how much to verify.
        evaluator: holds the samples that a runtime runs.

    Raises:
        ModelError: the model breaks rules of its target, which is a bug in onnxq.
    """
    if not plan.integer_nodes:
        return
    subject = Subject(
        draft,
        load(draft),
        get_target(config.target),
        samples=evaluator.samples[:VERIFIED_ON],
        threads=config.threads,
        seconds=BUILD_SECONDS[config.verify],
    )
    legal = check(subject)
    if legal.errors:
        raise ModelError(
            f"the quantized model breaks rules of {plan.target}, which is a bug in onnxq; "
            f"please report it: {'; '.join(map(str, legal.errors[:NAMED]))}"
        )
    yield legal
    if config.verify != "off":
        yield from ask_runtimes(subject)


def unfused(accepted: Acceptance, plan: QuantPlan) -> tuple[str, ...]:
    """List the nodes planned for integers that a runtime of the target runs in float."""
    runtimes = (verdict for verdict in accepted.verdicts if verdict.runtime != LEGALITY)
    found = (finding.node for verdict in runtimes for finding in verdict.findings)
    return tuple(dict.fromkeys(name for name in found if name in plan.integer_nodes))


def float_weights(reference: ir.Model, plan: QuantPlan) -> float:
    """Compute the share, in bytes, of float constants of the main graph that ``plan`` keeps in float."""
    sizes = {
        name: value.const_value.nbytes
        for name, value in reference.graph.initializers.items()
        if value.const_value is not None and value.const_value.dtype.is_floating_point()
    }
    quantized = {tensor for group in plan.groups.values() if group.constant for tensor in group.tensors}
    look_ups = (node.inputs[0] for node in reference.graph if node.name in plan.integer_tables)
    quantized |= {name_of(table) for table in look_ups if table is not None}
    left = sum(size for name, size in sizes.items() if name not in quantized)
    return left / max(sum(sizes.values()), 1)


# --- warnings ---------------------------------------------------------------------------------------


def static_warnings(
    accepted: Acceptance, plan: QuantPlan, reference: ir.Model, context: CorrectionContext
) -> Iterator[str]:
    """Yield the warnings about a static model.

    Args:
        accepted: the result of its acceptance check.
        plan: the plan that it was made from.
        reference: the float model, cleaned.
        context: samples and options.
    """
    config, samples = context.config, context.samples
    yield from speed_warnings(
        accepted,
        "" if config.autotune == "full" else " --autotune full keeps nodes in float where float is faster.",
    )
    if samples.synthetic:
        yield NO_DATA
    else:
        yield from saturation_warnings(accepted)
    yield from samples.warnings
    advice = "Synthetic inputs may not tell." if samples.synthetic else _advice(plan, config)
    yield from model_warnings(accepted, plan, reference, advice)


def model_warnings(accepted: Acceptance, plan: QuantPlan, reference: ir.Model, advice: str) -> Iterator[str]:
    """Yield the warnings that do not depend on where the ranges come from.

    Args:
        accepted: the result of its acceptance check.
        plan: the plan that it was made from.
        reference: the float model, cleaned.
        advice: what to do about inaccurate outputs.
    """
    if floats := unfused(accepted, plan):
        yield (
            f"planned for integers but run in float on this ONNX Runtime ({len(floats)} nodes): "
            f"{shorten(floats)}. The model is right, but slower than it could be."
        )
    yield from verdict_warnings(accepted.verdicts)
    share = float_weights(reference, plan) if plan.integer_nodes else 0.0
    if share > MOSTLY_FLOAT:
        yield (
            f"{share:.0%} of the weights are kept in float: expect little gain in size or speed. "
            "'onnxq inspect' shows why, node by node."
        )
    yield from output_warnings(accepted.quality, advice)


def verdict_warnings(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """Yield a warning for each check that failed because of the whole model; `unfused` is about its nodes."""
    for verdict in verdicts:
        if whole := [finding for finding in verdict.errors if not finding.node]:
            yield f"CHECK FAILED: {verdict.runtime}: {'; '.join(map(str, whole[:NAMED]))}"


def output_warnings(quality: Quality | None, advice: str) -> Iterator[str]:
    """Yield a warning for each output that is far from the float model's, with advice, or incomparable."""
    yield from comparison_warnings(quality)
    for name, output in (quality.outputs if quality else {}).items():
        poor = f"INACCURATE: output {name!r}"
        if not output.finite:
            yield f"output {name!r} of the quantized model holds NaN or infinite numbers"
        elif output.sqnr < _FLOOR.sqnr:
            yield f"{poor} is far from the float model's: SQNR {output.sqnr:.1f} dB. {advice}"
        elif output.agreement is not None and not _FLOOR.holds(output.sqnr, output.agreement):
            yield f"{poor} decides otherwise: agreement with float {output.agreement:.1%}. {advice}"


def comparison_warnings(quality: Quality | None) -> Iterator[str]:
    """Yield a warning for what could not be compared: outputs of other shapes, a metric that float fails."""
    if (metric := quality and quality.metric) and metric.smaller is False and metric.float_value == 0:
        yield (
            f"the float model itself has {metric.name} 0: the labels do not belong to its outputs, or its "
            "inputs are prepared otherwise than in its training. Look at numbers of classes, pixels and "
            "--preprocess"
        )
    for name, output in (quality.outputs if quality else {}).items():
        if output.incomparable:
            yield (
                f"output {name!r} has other shapes than the float model's in {output.incomparable} batches, "
                "which were not compared: judge the model by the measure of your task"
            )


def saturation_warnings(accepted: Acceptance) -> Iterator[str]:
    """Yield a warning if the model is less accurate on this processor than on others."""
    if accepted.quality is None or accepted.here is None:
        return
    exact, here = accepted.quality.sqnr, accepted.here.sqnr
    if here < GOOD_SQNR and exact - here > SATURATED:
        yield (
            "LESS ACCURATE ON THIS PROCESSOR: it has no VNNI, so ONNX Runtime's integer kernels saturate: "
            f"the SQNR of the worst output is {here:.1f} dB instead of {exact:.1f} dB. For processors like "
            "this one use --target onnxruntime-avx2."
        )


def speed_warnings(accepted: Acceptance, advice: str) -> Iterator[str]:
    """Yield a warning if the model is slower than float and takes long enough for that to matter."""
    speed = accepted.speed
    if speed is None or not accepted.is_slower or speed.float_seconds < NEGLIGIBLE_SECONDS:
        return
    yield (
        f"SLOWER THAN FLOAT on this machine: {speed.int8_seconds * 1e3:.2f} ms a run instead of "
        f"{speed.float_seconds * 1e3:.2f} ms.{advice}"
    )


def _advice(plan: QuantPlan, config: QuantConfig) -> str:
    """Advise how to bring outputs closer to the float model's."""
    goal = "a stricter --goal" if config.goal else f"--goal 'sqnr>={GOOD_SQNR:.0f}'"
    means = [f"{goal}, which widens weights or keeps nodes in float until it is reached"]
    if _has_few_bits(plan) and not {"adaround", "none"} & set(config.correct):
        names = " ".join(f"--correct {name}" for name in (*config.correct, "adaround"))
        means.append(f"{names}, which learns the rounding of weights of few bits")
    return f"Try {'; or '.join(means)}. 'onnxq sensitivity' ranks the points that cost most, for --exclude."


def _has_few_bits(plan: QuantPlan) -> bool:
    """Whether weights have less than 8 bits."""
    return any(group.constant and group.spec.dtype.bitwidth < 8 for group in plan.groups.values())
