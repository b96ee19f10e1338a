"""A quantized model on its way: what every correction takes, and gives back changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.core.plan import QuantPlan
from onnxq.graph.insert_qdq import insert_qdq


@dataclass(frozen=True)
class Draft:
    """Nothing in it is ever changed: corrections work on copies (which share what they do not change).

    Attributes:
        exact: the float model. What it computes is what is aimed at.
        model: the same graph, with weights on their grids where they are rounded otherwise than to
            nearest, and with biases that make up for errors. It becomes integers.
        plan: for both, with parameters.
        means: of the channels of the tensors that layers read, ``[C]`` in double.
    """

    reference: ir.Model
    model: ir.Model
    plan: QuantPlan
    channel_means: Mapping[str, NDArray[np.float64]]

    def quantized(self) -> ir.Model:
        """The Q/DQ model."""
        return insert_qdq(self.model, self.plan)

    def with_constants(self, arrays: Mapping[str, NDArray[np.generic]]) -> Draft:
        """``model`` with other values in some initializers; they keep their shapes and types."""
        return replace(self, model=with_constants(self.model, arrays))


def with_constants(model: ir.Model, arrays: Mapping[str, NDArray[np.generic]]) -> ir.Model:
    """A copy with other values in some initializers of the main graph, by name."""
    copy = model.clone()
    for name, array in arrays.items():
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        kind = value.const_value.dtype.numpy()
        value.const_value = ir.tensor(np.ascontiguousarray(array, kind), name=name)
    return copy
