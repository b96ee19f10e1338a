"""The sizes of a model's tensors for given inputs, from their shapes, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Feeds = Mapping[str, NDArray[np.generic]]

MOST_BYTES = 2**31
"""Limit of the memory for the tensors of all runs of a model that are under way."""


def side_by_side(model: ir.Model, feeds: Feeds, most: int) -> int:
    """Choose how many runs may be under way at a time, so that their tensors fit into memory.

    It counts all tensors of the main graph whose sizes are known: a runtime holds most of them at some time.

    Args:
        model: the model.
        feeds: the arrays of a typical batch, by input name.
        most: the largest number.
    """
    names = [value.name for node in model.graph for value in node.outputs if value.name]
    total = sum(tensor_bytes(model, names, feeds).values())
    return min(max(MOST_BYTES // max(total, 1), 1), most)


def tensor_bytes(model: ir.Model, names: Iterable[str], feeds: Feeds) -> dict[str, int]:
    """Compute the bytes of tensors from the shapes that the model gives for them.

    Args:
        model: the model.
        names: tensors of its main graph.
        feeds: arrays by input name; they tell the sizes of axes that the model only names.

    Returns:
        Tensor -> bytes; tensors whose type or shape is unknown are left out.
    """
    axes = dict(_axes(model, feeds))
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    found = {name: _bytes(values[name], axes) for name in names if name in values}
    return {name: size for name, size in found.items() if size is not None}


def _axes(model: ir.Model, feeds: Feeds) -> Iterator[tuple[str, int]]:
    """Yield the named axes of the inputs with their sizes."""
    for value in model.graph.inputs:
        array = feeds.get(value.name or "")
        if value.shape is None or array is None or len(value.shape) != np.ndim(array):
            continue
        for axis, size in zip(value.shape, np.shape(array), strict=True):
            if isinstance(axis, ir.SymbolicDim) and axis.value is not None:
                yield axis.value, size


def _bytes(value: ir.Value, axes: Mapping[str, int]) -> int | None:
    if value.shape is None or value.dtype is None or value.dtype is ir.DataType.STRING:
        return None
    sizes = [axes.get(axis.value or "") if isinstance(axis, ir.SymbolicDim) else axis for axis in value.shape]
    known = [size for size in sizes if size is not None]
    return math.ceil(math.prod(known) * value.dtype.itemsize) if len(known) == len(sizes) else None
