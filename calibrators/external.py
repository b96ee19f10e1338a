"""Weights in files -> in memory. onnx_ir itself closes the mapped file, even if arrays of it are in use."""

from __future__ import annotations

import sys

import numpy as np
import onnx_ir as ir


def load_external(model: ir.Model, most_bytes: int = sys.maxsize) -> None:
    """Let initializers of at most ``most_bytes``, in all graphs of ``model``, hold their values in memory."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= most_bytes:
                value.const_value = in_memory(tensor)


def in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The same tensor, with values of its own."""
    return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
