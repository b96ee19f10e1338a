"""Why a tensor is inaccurate, and what to try: rules, of which the first that applies counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from shlex import quote

from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.pipelines.report.activations import Activation
from onnxq.pipelines.report.evidence.layer_error import TensorError

INHERITED = 1.0
"""If a tensor loses less than this against its worst input, in dB, its error came with that input."""

OWN = 3.0
"""If its own rounding alone gives an SQNR at most this higher, in dB, it makes half of the error or more."""

CLIPPED = 1e-3
"""A share of clipped values that matters."""

WIDE = 8.0
"""A largest channel so many times the median one leaves three bits less to that one."""


@dataclass(frozen=True)
class Facts:
    """What is known of a tensor.

    Attributes:
        error: its error.
        config: the options that the model was made with.
        range: its range; None: it is not quantized itself.
        weight_bits: bits of the weights of its node; 0: it has none.
    """

    error: TensorError
    config: QuantConfig
    range: Activation | None
    weight_bits: int

    @property
    def by_rounding(self) -> bool:
        """Whether the tensor's own rounding and clipping give half of its error or more."""
        return self.error.rounding - self.error.sqnr <= OWN

    @property
    def clipped(self) -> float:
        """The share of its values that are clipped, unless they lie where what reads it is flat."""
        if self.range is None or self.range.group.flat is not None:
            return 0.0
        return self.range.clipped or 0.0


@dataclass(frozen=True)
class Remedy:
    """A cause, and what to try.

    Attributes:
        applies: whether the cause is this one.
        cause: the cause, in words.
        advice: what to try, in words, with options as on the command line.
    """

    applies: Callable[[Facts], bool]
    cause: Callable[[Facts], str]
    advice: Callable[[Facts], str]


def explained(facts: Facts) -> tuple[str, str]:
    """Return the cause of an error, and what to try."""
    found = next(remedy for remedy in REMEDIES if remedy.applies(facts))
    return found.cause(facts), found.advice(facts)


def facts_of(
    error: TensorError, plan: QuantPlan, config: QuantConfig, ranges: Mapping[str, Activation]
) -> Facts:
    """Collect what is known of a tensor.

    Args:
        error: its error.
        plan: the plan.
        config: the options.
        ranges: tensor -> its range.
    """
    weights = [
        plan.groups[point.group].spec.dtype.bitwidth
        for point in plan.points
        if point.consumer == error.node and plan.groups[point.group].constant
    ]
    return Facts(error, config, ranges.get(error.tensor), min(weights, default=0))


def _keep_float(facts: Facts) -> str:
    return f"--exclude {quote(facts.error.node)} keeps it in float" if facts.error.node else "a wider type"


def _other_range(facts: Facts) -> str:
    others = "minmax" if facts.config.method != "minmax" else "mse"
    more = "more samples that reach such values, or " if facts.config.method == "minmax" else ""
    return f"{more}--method {others}"


def _wider(facts: Facts) -> str:
    equalize = "" if "equalize" in facts.config.correct else "--correct equalize; or "
    pattern = facts.error.node or "*"
    wide = f"--override {quote(f'{pattern}: activation=uint16')} if the target has it"
    return f"{equalize}{wide}; or {_keep_float(facts)}"


REMEDIES: tuple[Remedy, ...] = (
    Remedy(
        lambda facts: bool(facts.error.source) and facts.error.lost < INHERITED and not facts.by_rounding,
        lambda facts: f"it comes from {facts.error.source}, as far off ({facts.error.inherited:.1f} dB)",
        lambda facts: "see that tensor",
    ),
    Remedy(
        lambda facts: facts.by_rounding and facts.clipped >= CLIPPED,
        lambda facts: f"its range is too small: {facts.clipped:.2%} of its values are clipped",
        _other_range,
    ),
    Remedy(
        lambda facts: facts.by_rounding and facts.error.spread >= WIDE,
        lambda facts: (
            f"one scale for channels of very different size: the largest reaches {facts.error.spread:.3g} "
            "times the median one"
        ),
        _wider,
    ),
    Remedy(
        lambda facts: facts.by_rounding,
        lambda facts: "its values are spread too unevenly for so few bits",
        _wider,
    ),
    Remedy(
        lambda facts: 0 < facts.weight_bits < 8,
        lambda facts: f"weights of {facts.weight_bits} bits",
        lambda facts: f"--correct adaround; or --override {quote(f'{facts.error.node}: weight=int8')}",
    ),
    Remedy(
        lambda facts: facts.weight_bits > 0 and facts.config.per_tensor,
        lambda facts: "one scale for all channels of its weights",
        lambda facts: "leave out --per-tensor",
    ),
    Remedy(
        lambda facts: facts.error.is_output,
        lambda facts: "it is an output, so nothing after it averages the error away",
        _keep_float,
    ),
    Remedy(
        lambda facts: facts.weight_bits > 0,
        lambda facts: "rounding of its inputs and weights",
        lambda facts: (
            f"{'' if facts.weight_bits > 8 else '--correct adaround,bias; or '}{_keep_float(facts)}"
        ),
    ),
    Remedy(
        lambda facts: True,
        lambda facts: f"{facts.error.op_type or 'it'} makes errors of its inputs larger",
        _keep_float,
    ),
)
"""In this order; the last one always applies."""
