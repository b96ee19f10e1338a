"""Choose the nodes that stay in float32 when a model is written in half precision, and check the choice.

Rules decide first (`onnxq.graph.half_precision.keep_float32`), from the extremes of all tensors on samples.
Then the model runs in both precisions. Where an output is far from float32's, the nodes whose outputs are
much noisier than their inputs stay in float32 too, and so do the nodes before them: what they subtract or
divide must not be rounded.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.data.samples import Sample
from calibrators.extremes import Extremes, measure_extremes
from calibrators.session import open_session
from onnxq.calibration.sample_split import evenly
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.graph.half_precision.keep_float32 import Knowledge, divisors, float32_nodes
from onnxq.graph.half_precision.narrow import Narrowing, narrow
from onnxq.graph.half_precision.saturate import saturate
from onnxq.graph.half_precision.simulate import simulated
from onnxq.graph.half_precision.widen import given_types
from onnxq.graph.nodes import name_of

MEASURED_ON = 16
"""The largest number of batches whose extremes are measured; the rules leave a margin for others."""

COMPARED_ON = 4
"""The number of batches on which the two precisions are compared, tensor by tensor."""

GOOD, GOOD_BESIDE_INTEGERS = 1e-4, 1e-3
"""Noise-to-signal ratio (power) of an output, 40 and 30 dB, up to which nothing is searched for: of a float
model, and of one whose integers make much more noise."""

NOISY = 16.0
"""By how much (power) a node's output must be noisier than its inputs to be what makes the noise."""

ROUNDING = 2.0**-24
"""Noise-to-signal ratio of rounding to float16, about."""

ROUNDS = 5
"""How often nodes are added."""

HELPS = 0.9
"""The noise that may be left (power), of that before, where more nodes stay in float32 for it."""

TOGETHER = 8
"""The largest number of nodes that are added at a time."""

MAKES_NOISE = "its output in half precision is much less exact than its inputs"


@dataclass(frozen=True)
class Runs:
    """Samples, and how to run models on them.

    Attributes:
        batches: the samples; empty if there are no real ones.
        providers: execution providers, the preferred one first.
        threads: the number of threads; 0 uses every processor.
    """

    batches: Sequence[Sample]
    providers: Sequence[str] = ("CPUExecutionProvider",)
    threads: int = 0

    @classmethod
    def of(cls, batches: Sequence[Sample], config: QuantConfig) -> Runs:
        """Run as the options say."""
        return cls(batches, config.providers, config.threads)

    def first(self, count: int) -> Runs:
        """Return a copy with the first ``count`` batches."""
        return replace(self, batches=self.batches[:count])


def chosen_remainder(
    model: ir.Model, plan: QuantPlan, batches: Sequence[Sample], config: QuantConfig
) -> Narrowing | None:
    """Decide in which types to write what ``plan`` leaves in float; None if nothing changes.

    Args:
        model: the float model that gets Q/DQ.
        plan: its plan.
        batches: samples, real ones; empty if there are none.
        config: the options.

    Raises:
        CalibrationError: the model does not take a sample.
    """
    keep_io = config.io_types == "keep"
    if plan.float_type == ir.DataType.FLOAT:
        return None if keep_io else Narrowing(plan.float_type, {}, keep_io)
    runs = Runs.of(batches, config)
    chosen = choose_float32(model, runs, plan.float_type, good=GOOD_BESIDE_INTEGERS)
    return replace(chosen, keep_io=keep_io)


AS_GIVEN = "it is in float32 in the given model"


def choose_float32(
    model: ir.Model,
    runs: Runs,
    dtype: ir.DataType,
    given: Mapping[str, str] | None = None,
    good: float = GOOD,
) -> Narrowing:
    """Decide for each node whether it stays in float32; so do those that were in float32 in a mixed model.

    Args:
        model: a model in float32 whose tensors have types.
        runs: samples, and how to run them; without samples the ranges of tensors are unknown.
        dtype: float16 or bfloat16.
        given: more nodes that stay in float32 in any case, with reasons.
        good: the noise-to-signal ratio (power) of an output that is good enough; if it is infinite, the rules
            decide alone.

    Raises:
        CalibrationError: the model does not take a sample.
    """
    given = {**dict.fromkeys(given_types(model).float32, AS_GIVEN), **(given or {})}
    if dtype == ir.DataType.FLOAT16:
        model = model.clone()
        saturate(model)
    known = Knowledge(dtype, _extremes(model, runs), given)
    chosen = Narrowing(dtype, float32_nodes(model, known))
    if not runs.batches or dtype != ir.DataType.FLOAT16 or math.isinf(good):
        return chosen
    return _refined(model, runs.first(COMPARED_ON), chosen, known, good)


def _extremes(model: ir.Model, runs: Runs) -> Mapping[str, Extremes]:
    """Measure the extremes of all tensors on some of the samples; none without samples."""
    if not runs.batches:
        return {}
    return measure_extremes(
        model,
        evenly(runs.batches, MEASURED_ON),
        divisors(model),
        providers=runs.providers,
        threads=runs.threads,
    )


def _refined(model: ir.Model, runs: Runs, chosen: Narrowing, known: Knowledge, good: float) -> Narrowing:
    """Add the nodes that make noise, and more and more nodes before them; return the best choice."""
    worst = _compare(model, chosen, runs, ()).worst(model)
    if worst <= good:
        return chosen
    inner = [name_of(value) for node in model.graph for value in node.outputs]
    trial, noise = chosen, _compare(model, chosen, runs, inner)
    for _ in range(ROUNDS):
        culprits = _culprits(model, noise, good, trial.float32) if worst > good else []
        if not culprits:
            break
        given = {**trial.float32, **dict.fromkeys(culprits, MAKES_NOISE)}
        trial = replace(trial, float32=float32_nodes(model, replace(known, given=given)))
        noise = _compare(model, trial, runs, inner)
        if noise.worst(model) < HELPS * worst:
            chosen, worst = trial, noise.worst(model)
    return chosen


@dataclass(frozen=True)
class _Noise:
    """Noise-to-signal ratios (power) of tensors of the main graph, by name; infinite after an overflow."""

    ratios: Mapping[str, float]

    def of(self, values: Iterable[ir.Value | None]) -> float:
        """Return the largest ratio of some values; 0 for constants."""
        return max(
            (self.ratios.get(name_of(value), 0.0) for value in values if value is not None), default=0.0
        )

    def worst(self, model: ir.Model) -> float:
        """Return the largest ratio of the outputs of the model."""
        return self.of(model.graph.outputs)


def _culprits(model: ir.Model, noise: _Noise, good: float, wide: Collection[str]) -> list[str]:
    """Name the nodes that make most noise, and the nearest nodes before each that are not ``wide`` yet."""
    grown = {}
    for node in model.graph:
        before, after = noise.of(node.inputs), noise.of(node.outputs)
        growth = after / (before + ROUNDING)
        if before < good < after and growth > NOISY:
            grown[node] = growth
    worst = sorted(grown, key=grown.__getitem__, reverse=True)[:TOGETHER]
    found = {name_of(node) for node in worst} - set(wide)
    for node in worst:
        found.update(_nearest_before(node, wide))
    return sorted(found)


def _nearest_before(node: ir.Node, wide: Collection[str]) -> Iterator[str]:
    """Name the nodes before ``node``, back to the first that are not in float32."""
    ahead, seen = [node], {node}
    while ahead:
        makers = {value.producer() for value in ahead.pop().inputs if value is not None}
        sources = {maker for maker in makers if maker is not None} - seen
        seen |= sources
        ahead.extend(source for source in sources if source.name in wide)
        yield from (name_of(source) for source in sources if source.name not in wide)


def _compare(model: ir.Model, chosen: Narrowing, runs: Runs, inner: Collection[str]) -> _Noise:
    """Run the model in both precisions; compare the outputs, and the ``inner`` tensors that both have."""
    half = model.clone()
    narrow(half, chosen)
    outputs = [name_of(value) for value in model.graph.outputs]
    both = {name_of(v) for node in half.graph for v in node.outputs if v.dtype in _FLOATS}
    more = [
        name_of(v)
        for node in model.graph
        for v in node.outputs
        if v.name in both.intersection(inner) and v.dtype == ir.DataType.FLOAT and v.name not in outputs
    ]
    names = [*(name for name in outputs if name), *more]
    sessions = [
        open_session(each, outputs=more, providers=runs.providers, threads=runs.threads)
        for each in (model, simulated(half))
    ]
    signal, lost = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for batch in runs.batches:
        exact, rounded = (run_batch(session, names, batch) for session in sessions)
        for name, one, other in zip(names, exact, rounded, strict=True):
            powers = _powers(np.asarray(one), np.asarray(other))
            signal[name], lost[name] = signal[name] + powers[0], lost[name] + powers[1]
    return _Noise({name: lost[name] / signal[name] if signal[name] else 0.0 for name in names})


_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _powers(exact: NDArray[np.generic], rounded: NDArray[np.generic]) -> tuple[float, float]:
    """Return signal and noise, summed over the finite numbers of ``exact``."""
    if exact.dtype.kind != "f" or exact.shape != rounded.shape:
        return 0.0, 0.0
    known = np.isfinite(exact)
    wide = exact[known].astype(np.float64)
    off = rounded[known].astype(np.float64) - wide
    noise = float(np.square(off).sum()) if np.isfinite(off).all() else float("inf")
    return float(np.square(wide).sum()), noise
