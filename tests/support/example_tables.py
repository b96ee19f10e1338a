"""Tables that the tests share, and what makes two of them the same."""

import numpy as np
import onnx_ir as ir

from onnxq.calibration.tables.table import INT8, UINT8, Encoding, NcnnLayer, Table
from onnxq.core.plan import QuantParams, QuantSpec

PER_CHANNEL = QuantSpec(ir.DataType.INT8, symmetric=True, axis=0, narrow_range=True)


def exact(spec, scale, zero_point=0):
    scale = np.asarray(scale, np.float32)
    return Encoding.of_params(spec, QuantParams(scale, np.full(scale.shape, zero_point, spec.dtype.numpy())))


SYMMETRIC = exact(INT8, 0.025)
UNSIGNED = exact(UINT8, 0.0235, 7)
WEIGHT = exact(PER_CHANNEL, [0.1, 0.2])

EXAMPLE = Table(
    activations={"x": SYMMETRIC, "a/b c": UNSIGNED, "ä": Encoding.of_range(-8.0, 1.0)},
    weights={"b": exact(INT8, 0.5), "w": WEIGHT},
    layers={
        "conv": NcnnLayer(UNSIGNED, WEIGHT, channels=2),
        "w3": NcnnLayer(SYMMETRIC, WEIGHT, 2, winograd=True),
    },
    operators=("conv", "add"),
    absent=frozenset({"gone"}),
)


def same(one, other):
    """Is this the same encoding, to the last bit?"""
    ends = np.array_equal(one.low, other.low) and np.array_equal(one.high, other.high)
    if one.params is None or other.params is None:
        return ends and one.params is other.params and one.spec is other.spec
    pairs = ((getattr(each.params, name) for each in (one, other)) for name in ("scale", "zero_point"))
    alike = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in pairs)
    return ends and alike and one.spec == other.spec
