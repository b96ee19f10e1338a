"""Equalization of channel ranges, so that one scale per tensor suits all its channels.

This combines cross-layer equalization (CLE; Nagel et al., Data-free quantization through weight equalization
and bias correction, 2019) and SmoothQuant (Xiao et al., 2022). A channel is multiplied by a factor in the
weights, the bias or the normalization that produces it, and divided by it in the weights of all consumers.
The outputs of the float model do not change; after quantization, small channels use more integers.
`labels` and `scale_rules` determine which channels may be scaled, and `noise_model` the factors.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.channels.channel_moments import Reals, measure
from onnxq.algorithms.channels.fold_factors import MulSite, find_places, folded, with_muls
from onnxq.algorithms.channels.labels import Channels, find_channels
from onnxq.algorithms.channels.noise_model import (
    Activations,
    NoiseModelBuilder,
    Term,
    minimize_noise,
    noise,
)
from onnxq.algorithms.channels.scale_rules import RULES
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft
from onnxq.graph.nodes import name_of
from onnxq.targets.lookup import get_target
from onnxq.targets.target import Role

WORTH = 0.02
"""Smallest noise reduction for which a Mul is inserted, as a share of all remaining noise."""

ENOUGH = 0.3
"""Smallest total noise reduction, as a share of the noise of the activations that the factors affect.

Factors use up the headroom of small channels for values outside the observed range. Samples that resemble
those fitted on do not show the clipping error that this may cause.
"""

UNLIKE = 4.0
"""Least noise (power) of a raw tensor for which a Mul is considered, if a scale for each channel gave 1.

The Mul takes time at each inference; a fourth of the noise is the least that is worth it: one bit more.
"""

logger = logging.getLogger(__name__)


def equalize(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Return a draft with equalized channels; None if the predicted gain is too small.

    Factors change no relative error, so they are of no use to floating-point numbers. The equalized model is
    calibrated again. Its weights are rounded to nearest.

    Raises:
        CalibrationError: the model rejects a sample.
    """
    if any(group.spec.is_floating for group in draft.plan.groups.values()):
        return None
    context.progress("measuring channels")
    found = _scalable(draft, context)
    if found is None:
        return None
    logs, worth = _factors(found)
    unscaled = np.zeros_like(logs)
    before, after = noise(found.terms, unscaled), noise(found.terms, logs)
    logger.debug("predicted noise: %g -> %g", before, after)
    if before - after < ENOUGH * noise([t for t in found.terms if isinstance(t, Activations)], unscaled):
        return None
    context.progress("calibrating the equalized model")
    return context.recalibrate(_scaled(draft.reference, found.channels, logs, worth))


def equalized(draft: Draft, context: CorrectionContext) -> ir.Model | None:
    """Return ``draft.reference`` with equalized channels, for dynamic quantization.

    Ranges are computed at run time, so unseen values are not clipped and small gains are accepted too.
    Returns None if no channel can be scaled, or the model rejects all samples.

    Raises:
        CalibrationError: the model rejects a sample.
    """
    found = _scalable(draft, context)
    return None if found is None else _scaled(draft.reference, found.channels, *_factors(found))


@dataclass(frozen=True)
class _Scalable:
    """The channels of a model that can be scaled, the sites for a Mul, and the noise."""

    channels: Channels
    places: Sequence[MulSite]
    terms: Sequence[Term]


def _scalable(draft: Draft, context: CorrectionContext) -> _Scalable | None:
    """Find and measure the channels that can be scaled; None if there are none, or no sample is accepted."""
    found = find_channels(draft.reference, RULES)
    skip = _quantized_inputs(draft.reference, context)
    channels, places, builder = _places(draft, found, skip)
    seen = measure(draft, channels, builder.needed, context) if builder.needed else {}
    if not seen:
        return None
    terms = builder.terms(seen)
    alike = [place.tensor for place in places if place.is_raw and _unlikeness(place, terms) < UNLIKE]
    if not alike:
        return _Scalable(channels, places, terms)
    channels, places, builder = _places(draft, found, [*skip, *alike])
    return _Scalable(channels, places, builder.terms(seen)) if builder.needed else None


def _places(
    draft: Draft, channels: Channels, skip: Collection[str]
) -> tuple[Channels, Sequence[MulSite], NoiseModelBuilder]:
    """Do the same as `find_places`, and give the builder of the noise model."""
    channels, places = find_places(draft.reference, draft.plan, channels, skip)
    raw = [place.tensor for place in places if place.is_raw]
    return channels, places, NoiseModelBuilder(draft, channels, raw)


def _quantized_inputs(model: ir.Model, context: CorrectionContext) -> Sequence[str]:
    """Return the inputs of the graph if a Mul of them would be quantized too, and so come too late."""
    rule = get_target(context.config.target).rules.get("Mul")
    return [name_of(value) for value in model.graph.inputs] if rule and rule.role is Role.ANCHOR else []


def _unlikeness(place: MulSite, terms: Sequence[Term]) -> float:
    touched = [term for term in terms if isinstance(term, Activations) and term.touches(place.labels)]
    return max((term.unlikeness for term in touched), default=1.0)


def _factors(found: _Scalable) -> tuple[Reals, Collection[MulSite]]:
    """Return the logarithms of the factors, and the sites where a Mul is worthwhile."""
    logs = minimize_noise(found.terms, found.channels.count)
    worth = worthwhile(found.places, found.terms, logs)
    for place in found.places:
        if place not in worth:
            logs[place.labels] = 0.0
    return logs, worth


def _scaled(model: ir.Model, channels: Channels, logs: Reals, worth: Collection[MulSite]) -> ir.Model:
    factors = np.exp(logs)
    return with_muls(folded(model, channels, factors), worth, factors)


def worthwhile(places: Sequence[MulSite], terms: Sequence[Term], logs: Reals) -> list[MulSite]:
    """Return the sites whose factors reduce the predicted noise by at least `WORTH` of its total.

    Args:
        places: the candidate sites.
        terms: the terms of the noise.
        logs: the logarithms of the factors, one for each label.
    """
    least = WORTH * noise(terms, logs)
    return [place for place in places if _gain(place, terms, logs) >= least]


def _gain(place: MulSite, terms: Sequence[Term], logs: Reals) -> float:
    """Return by how much the predicted noise would grow without the factors of this site."""
    without = logs.copy()
    without[place.labels] = 0.0
    touched = [term for term in terms if term.touches(place.labels)]
    return noise(touched, without) - noise(touched, logs)
