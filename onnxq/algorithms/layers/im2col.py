"""The rows x that a layer multiplies its matrices with, picked at random from its input (im2col, sampled).

For a convolution, a row is the patch of the input under the kernel at one place of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import int_attribute, ints_attribute
from onnxq.graph.operators import WEIGHTED

Floats = NDArray[np.float32]
RowIndices = NDArray[np.int64]

_Inputs = Callable[[RowIndices, int, int, int, int], RowIndices]
"""Positions in the output [n, 1], kernel size, stride, dilation, front padding -> in the input [n, taps]."""


def im2col_rows(node: ir.Node, data: NDArray[np.generic], limit: int, rng: np.random.Generator) -> Floats:
    """At most ``limit`` rows for each sample of ``data``, the node's input, at random places: ``[n, G, K]``.

    G and K are as in `onnxq.algorithms.layers.matrices`.
    """
    return _PATCHES[node.op_type](node, np.asarray(data, np.float32), limit, rng)


def finite(rows: Floats) -> Floats:
    """``rows`` with zeros in place of what is infinite or no number."""
    known = np.isfinite(rows)
    return rows if known.all() else np.where(known, rows, np.float32(0))


def _conv_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    return _gathered(node, data, limit, rng, _conv_places)


def _transposed_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    return _gathered(node, data, limit, rng, _transposed_places)


def _conv_places(out: RowIndices, size: int, stride: int, dilation: int, pad: int) -> RowIndices:
    return out * stride - pad + np.arange(size) * dilation


def _transposed_places(out: RowIndices, size: int, stride: int, dilation: int, pad: int) -> RowIndices:
    """Input i adds to output ``i * stride - pad + tap * dilation``; an output between them meets zeros."""
    steps = out + pad - np.arange(size) * dilation
    return np.where(steps % stride == 0, steps // stride, -1)


def _gathered(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator, inputs: _Inputs) -> Floats:
    """Data [N, C, spatial ...] -> [N * n, G, K]."""
    sizes, kernel = data.shape[2:], _kernel(node)
    rank = len(sizes)
    strides = ints_attribute(node, "strides", (1,) * rank)
    dilations = ints_attribute(node, "dilations", (1,) * rank)
    before, out_sizes = _geometry(node, sizes, kernel, strides, dilations)
    chosen = _chosen(out_sizes, limit, rng)
    found = [inputs(chosen[d][:, None], kernel[d], strides[d], dilations[d], before[d]) for d in range(rank)]
    index, inside = _combined(found, sizes)
    rows = data.reshape(*data.shape[:2], -1)[:, :, index]  # [N, C, n, taps]
    if not inside.all():
        rows *= inside
    count, channels, n, taps = rows.shape
    groups = int_attribute(node, "group", 1)
    split = rows.reshape(count, groups, channels // groups, n, taps).transpose(0, 3, 1, 2, 4)
    result: Floats = split.reshape(count * n, groups, -1)
    return result


def _combined(found: Sequence[RowIndices], sizes: Sequence[int]) -> tuple[RowIndices, NDArray[np.bool_]]:
    """Positions along each axis, ``[n, its taps]`` -> flat ones, ``[n, taps]``, and which lie inside."""
    index, inside = np.zeros((len(found[0]), 1), np.int64), np.ones((len(found[0]), 1), bool)
    for place, size in zip(found, sizes, strict=True):
        valid = (place >= 0) & (place < size)
        index = (index[:, :, None] * size + np.where(valid, place, 0)[:, None, :]).reshape(len(place), -1)
        inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(place), -1)
    return index, inside


def _kernel(node: ir.Node) -> tuple[int, ...]:
    weight = node.inputs[WEIGHTED[node.op_type].weight]
    assert weight is not None
    assert weight.shape is not None
    return tuple(int(size) for size in weight.shape.numpy()[2:])


def _geometry(
    node: ir.Node,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:
    """Padding in front, and size of the output, of each spatial axis.

    https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axis = _transposed_axis if node.op_type == "ConvTranspose" else _conv_axis
    both = [axis(node, d, sizes[d], spans[d], strides[d], len(sizes)) for d in range(len(sizes))]
    return [front for front, _ in both], [size for _, size in both]


def _conv_axis(node: ir.Node, d: int, size: int, span: int, stride: int, rank: int) -> tuple[int, int]:
    pads, auto = ints_attribute(node, "pads", (0,) * (2 * rank)), _auto_pad(node)
    if not auto.startswith("SAME"):
        front, total = pads[d], pads[d] + pads[d + rank]
    else:
        total = max(0, (-(-size // stride) - 1) * stride + span - size)
        front = total - total // 2 if auto == "SAME_LOWER" else total // 2
    return front, (size + total - span) // stride + 1


def _transposed_axis(node: ir.Node, d: int, size: int, span: int, stride: int, rank: int) -> tuple[int, int]:
    pads, auto = ints_attribute(node, "pads", (0,) * (2 * rank)), _auto_pad(node)
    extra, wanted = (
        ints_attribute(node, "output_padding", (0,) * rank),
        ints_attribute(node, "output_shape", ()),
    )
    full = (size - 1) * stride + span + extra[d]
    if not wanted and not auto.startswith("SAME"):
        return pads[d], full - pads[d] - pads[d + rank]
    out = wanted[d - rank] if wanted else min(full, size * stride)
    total = max(0, full - out)
    return (total // 2 if auto == "SAME_UPPER" else total - total // 2), out


def _auto_pad(node: ir.Node) -> str:
    return node.attributes.get_string("auto_pad", "NOTSET")


def _chosen(sizes: Sequence[int], limit: int, rng: np.random.Generator) -> list[RowIndices]:
    """At most ``limit`` different places of the output, one index array for each axis."""
    total = math.prod(sizes)
    flat = np.arange(total) if total <= limit else np.sort(rng.choice(total, limit, replace=False))
    return [np.asarray(axis, np.int64) for axis in np.unravel_index(flat, sizes)]


def _gemm_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    rows = data.T if int_attribute(node, "transA", 0) else data
    return _rows(rows, limit * len(rows), rng)


def _matmul_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    return _rows(data, limit * (len(data) if data.ndim > 1 else 1), rng)


def _rows(data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    rows = data.reshape(-1, data.shape[-1])
    if len(rows) > limit:
        rows = rows[np.sort(rng.choice(len(rows), limit, replace=False))]
    result: Floats = rows[:, None, :]
    return result


_PATCHES: Mapping[str, Callable[[ir.Node, Floats, int, np.random.Generator], Floats]] = {
    "Conv": _conv_patches,
    "ConvTranspose": _transposed_patches,
    "Gemm": _gemm_patches,
    "MatMul": _matmul_patches,
}
