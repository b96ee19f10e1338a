"""The draft of a quantized model: the input and the result of every correction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.statistics import TensorStatistics
from onnxq.core.plan import QuantPlan
from onnxq.graph.qdq.insert_qdq import insert_qdq


@dataclass(frozen=True)
class Draft:
    """An immutable draft of a quantized model. Corrections return copies, which share unchanged data.

    Attributes:
        reference: the float model, whose outputs are the target.
        model: the same graph, to be quantized. Its weights lie on their quantization grids where they are
            not rounded to nearest; its biases include the corrections.
        plan: the quantization plan of both models, with scales and zero points.
        channel_means: the channel means, ``[C]`` in double precision, of the tensors that layers read, by
            tensor name.
        statistics: the calibration statistics of its tensors; none if the ranges come from a table.
    """

    reference: ir.Model
    model: ir.Model
    plan: QuantPlan
    channel_means: Mapping[str, NDArray[np.float64]]
    statistics: Mapping[str, TensorStatistics] = field(default_factory=lambda: MappingProxyType({}))

    def quantized(self) -> ir.Model:
        """Return the Q/DQ model."""
        return insert_qdq(self.model, self.plan)

    def explained(self, reasons: Mapping[str, str]) -> Draft:
        """Return a copy with other ``reasons`` for float nodes in its plan, by the names of the nodes."""
        told = {
            name: replace(node, reason=reasons.get(name, node.reason))
            for name, node in self.plan.float_nodes.items()
        }
        return replace(self, plan=replace(self.plan, float_nodes=told))

    def with_constants(self, arrays: Mapping[str, NDArray[np.generic]]) -> Draft:
        """Return a copy whose ``model`` has new values in some initializers; their types are kept."""
        return replace(self, model=with_constants(self.model, arrays))


def with_constants(model: ir.Model, arrays: Mapping[str, NDArray[np.generic]]) -> ir.Model:
    """Return a copy of ``model`` with new values in some initializers of the main graph, by name."""
    copy = model.clone()
    for name, array in arrays.items():
        value = copy.graph.initializers[name]
        assert value.const_value is not None
        kind = value.const_value.dtype.numpy()
        value.const_value = ir.tensor(np.ascontiguousarray(array, kind), name=name)
    return copy
