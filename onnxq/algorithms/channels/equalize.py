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

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.channels.channel_moments import measure
from onnxq.algorithms.channels.fold_factors import MulSite, find_places, folded, with_muls
from onnxq.algorithms.channels.labels import Channels, find_channels
from onnxq.algorithms.channels.noise_model import (
    Activations,
    NoiseModelBuilder,
    Reals,
    Term,
    minimize_noise,
    noise,
)
from onnxq.algorithms.channels.scale_rules import RULES
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.draft import Draft

WORTH = 0.02
"""Smallest noise reduction for which a Mul is inserted, as a share of all remaining noise."""

ENOUGH = 0.3
"""Smallest total noise reduction, as a share of the noise of the activations that the factors affect.

Factors use up the headroom of small channels for values outside the observed range. Samples that resemble
those fitted on do not show the clipping error that this may cause.
"""

logger = logging.getLogger(__name__)


def equalize(draft: Draft, context: CorrectionContext) -> Draft | None:
    """Return a draft with equalized channels; None if the predicted gain is too small.

    The equalized model is calibrated again. Its weights are rounded to nearest.

    Raises:
        CalibrationError: the model rejects a sample.
    """
    channels, places, builder = _scalable(draft)
    if not builder.needed:
        return None
    context.progress("measuring channels")
    terms = builder.terms(measure(draft.reference, channels, builder.needed, context))
    logs, worth = _factors(terms, channels, places)
    unscaled = np.zeros_like(logs)
    before, after = noise(terms, unscaled), noise(terms, logs)
    logger.debug("predicted noise: %g -> %g", before, after)
    if before - after < ENOUGH * noise([t for t in terms if isinstance(t, Activations)], unscaled):
        return None
    context.progress("calibrating the equalized model")
    return context.recalibrate(_scaled(draft.reference, channels, logs, worth))


def equalized(draft: Draft, context: CorrectionContext) -> ir.Model | None:
    """Return ``draft.reference`` with equalized channels, for dynamic quantization.

    Ranges are computed at run time, so unseen values are not clipped and small gains are accepted too.
    Returns None if no channel can be scaled, or the model rejects all samples.

    Raises:
        CalibrationError: the model rejects a sample.
    """
    channels, places, builder = _scalable(draft)
    seen = measure(draft.reference, channels, builder.needed, context) if builder.needed else {}
    if not seen:
        return None
    logs, worth = _factors(builder.terms(seen), channels, places)
    return _scaled(draft.reference, channels, logs, worth)


def _scalable(draft: Draft) -> tuple[Channels, list[MulSite], NoiseModelBuilder]:
    channels, places = find_places(draft.reference, draft.plan, find_channels(draft.reference, RULES))
    return channels, places, NoiseModelBuilder(draft, channels)


def _factors(
    terms: Sequence[Term], channels: Channels, places: Sequence[MulSite]
) -> tuple[Reals, Collection[MulSite]]:
    """Return the logarithms of the factors, and the sites where a Mul is worthwhile."""
    logs = minimize_noise(terms, channels.count)
    worth = worthwhile(places, terms, logs)
    for place in places:
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
