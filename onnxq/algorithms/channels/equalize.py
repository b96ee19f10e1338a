"""Channels of one tensor are brought to like sizes, so that its one scale suits all of them.

Cross-layer equalization (CLE; Nagel et al., Data-free quantization through weight equalization and bias
correction, 2019) and SmoothQuant (Xiao et al., 2022) in one: a channel is multiplied by a factor in the
weights, the bias or the normalization that it comes from, and divided by it in all weights that read it.
The float model computes what it did; quantized, small channels get more integers. What may be scaled is in
`channels` and `linear`, how far in `minimize_noise`.
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
    Iteration,
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
"""What a Mul that is inserted must gain, as a share of all the noise that is left."""

ENOUGH = 0.3
"""What all factors together must gain, as a share of the noise of the activations that they can change. They
take up the room that small channels have for values never seen: samples like those that were fitted on do not
show what that costs.
"""

logger = logging.getLogger(__name__)


def equalize(draft: Draft, context: CorrectionContext) -> Draft | None:
    """A draft of a float model with equalized channels; None where that gains too little.

    It is calibrated anew, and begins with weights rounded to nearest.

    Raises:
        CalibrationError: the model does not take a sample.
    """
    channels, places, outlook = _scalable(draft)
    if not outlook.needed:
        return None  # nothing quantized has channels that could be scaled
    context.progress("measuring channels")
    terms = outlook.terms(measure(draft.reference, channels, outlook.needed, context))
    logs, worth = _factors(terms, channels, places)
    unscaled = np.zeros_like(logs)
    before, after = noise(terms, unscaled), noise(terms, logs)
    logger.debug("predicted noise: %g -> %g", before, after)
    if before - after < ENOUGH * noise([t for t in terms if isinstance(t, Iteration)], unscaled):
        return None
    context.progress("calibrating the equalized model")
    return context.recalibrate(_scaled(draft.reference, channels, logs, worth))


def equalized(draft: Draft, context: CorrectionContext) -> ir.Model | None:
    """``draft.exact`` with equalized channels, for operators that find their ranges at run time.

    What was never seen is not clipped there, so that small gains are taken, too. None where there is nothing
    to scale, or the model takes no sample.

    Raises:
        CalibrationError: the model does not take a sample.
    """
    channels, places, outlook = _scalable(draft)
    seen = measure(draft.reference, channels, outlook.needed, context) if outlook.needed else {}
    if not seen:
        return None
    logs, worth = _factors(outlook.terms(seen), channels, places)
    return _scaled(draft.reference, channels, logs, worth)


def _scalable(draft: Draft) -> tuple[Channels, list[MulSite], NoiseModelBuilder]:
    channels, places = find_places(draft.reference, draft.plan, find_channels(draft.reference, RULES))
    return channels, places, NoiseModelBuilder(draft, channels)


def _factors(
    terms: Sequence[Term], channels: Channels, places: Sequence[MulSite]
) -> tuple[Reals, Collection[MulSite]]:
    """Logarithms of the factors, and the places that are worth a Mul."""
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
    """The places whose factors lessen the predicted noise by `WORTH` of all of it, or more."""
    least = WORTH * noise(terms, logs)
    return [place for place in places if _gain(place, terms, logs) >= least]


def _gain(place: MulSite, terms: Sequence[Term], logs: Reals) -> float:
    """How much noise there would be beside what is predicted, without the factors of this place."""
    without = logs.copy()
    without[place.labels] = 0.0
    touched = [term for term in terms if term.touches(place.labels)]
    return noise(touched, without) - noise(touched, logs)
