"""BatchNormalization at inference: its constants, and what they tell about the range of each channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import constant_value, int_attribute, is_op, sole_output
from onnxq.graph.operators import attribute_value

Array = NDArray[np.float64]

DEVIATIONS = 3.0
"""Standard deviations from the mean to the ends of the range; of a normal distribution, 99.7 % lie within."""

MOST_LOST_BITS = 2.0
"""The most bits of accuracy to give up where one scale has to suit the input of a BatchNormalization.

The rounding noise of 8 bits is 43 dB below a normal distribution of this range, that of 6 bits 31 dB: no more
than that of a whole network in int8. Two bits are lost where the deviations of channels differ sixfold to
eightfold. Pictures, whose channels are alike, lose 0.1 bits; features in different units soon lose more than
four.
"""


@dataclass(frozen=True)
class BatchNorm:
    """The constants of a BatchNormalization, ``[C]`` each: ``y = gamma * (x - mean) / deviation + beta``."""

    gamma: Array
    beta: Array
    mean: Array
    deviation: Array


def read_batchnorm(node: ir.Node) -> BatchNorm | None:
    """Return the constants of a BatchNormalization; None if they are not constant."""
    if not is_op(node, "BatchNormalization") or sole_output(node) is None or node.inputs[0] is None:
        return None
    constants = [constant_value(value) for value in node.inputs[1:5]]
    if int_attribute(node, "training_mode", 0) or any(constant is None for constant in constants):
        return None
    gamma, beta, mean, var = (c.astype(np.float64) for c in constants if c is not None)
    with np.errstate(invalid="ignore"):
        return BatchNorm(gamma, beta, mean, np.sqrt(var + attribute_value(node, "epsilon")))


def lost_bits(norm: BatchNorm, power: Array) -> float:
    """Return how many bits of accuracy are lost if the input is quantized instead of the output.

    A tensor with one scale has the step ``D = (high - low) / 255``, and each channel the noise ``D^2 / 12``.
    The range of each channel is known without data: mean and standard deviation are ``mean``, ``deviation``
    before the BatchNormalization, ``beta`` and ``|gamma|`` after it.

    Args:
        norm: the BatchNormalization.
        power: factor of the noise (power) of each channel of its output, ``[C]``.

    Returns:
        Half the binary logarithm of the ratio of both noises (power); negative if accuracy gains.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        before = _noise(norm.mean, norm.deviation, power * np.square(norm.gamma / norm.deviation))
        return float(np.log2(before / _noise(norm.beta, np.abs(norm.gamma), power)) / 2)


def _noise(mean: Array, deviation: Array, power: Array) -> float:
    """Return the noise up to a constant factor; the range includes zero."""
    reach = DEVIATIONS * deviation
    width = max((mean + reach).max(), 0.0) - min((mean - reach).min(), 0.0)
    return float(width**2 * power.sum())
