"""Random rows of the im2col matrix of a layer: the vectors x that its weight matrices are multiplied by.

For a convolution, a row is the patch of the input under the kernel for one position of the output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxq.graph.nodes import int_attribute, ints_attribute
from onnxq.graph.operators import groups_of, weight_shape

Floats = NDArray[np.float32]
RowIndices = NDArray[np.int64]

_Inputs = Callable[[RowIndices, int, int, int, int], RowIndices]
"""Maps output positions [n, 1], kernel size, stride, dilation, front padding to input positions [n, taps]."""


def im2col_rows(node: ir.Node, data: NDArray[np.generic], limit: int, rng: np.random.Generator) -> Floats:
    """Return random rows of the im2col matrix of ``data``, ``[n, G, K]``.

    G and K are as in `onnxq.algorithms.layers.matrices`.

    Args:
        node: a Conv, ConvTranspose, Gemm or MatMul.
        data: the data input of ``node``.
        limit: the largest number of rows for each sample of ``data``.
        rng: chooses the positions.
    """
    return _PATCHES[node.op_type](node, np.asarray(data, np.float32), limit, rng)


def finite(rows: Floats) -> Floats:
    """Return ``rows`` with infinities and NaN replaced by zero."""
    known = np.isfinite(rows)
    return rows if known.all() else np.where(known, rows, np.float32(0))


def _conv_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    return _gathered(node, data, limit, rng, _conv_places)


def _transposed_patches(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator) -> Floats:
    return _gathered(node, data, limit, rng, _transposed_places)


def _conv_places(out: RowIndices, size: int, stride: int, dilation: int, pad: int) -> RowIndices:
    return out * stride - pad + np.arange(size) * dilation


def _transposed_places(out: RowIndices, size: int, stride: int, dilation: int, pad: int) -> RowIndices:
    """Return the input positions i with output position ``i * stride - pad + tap * dilation``; -1 if none."""
    steps = out + pad - np.arange(size) * dilation
    return np.where(steps % stride == 0, steps // stride, -1)


def _gathered(node: ir.Node, data: Floats, limit: int, rng: np.random.Generator, inputs: _Inputs) -> Floats:
    """Gather n random patches of each sample of ``data``, ``[N, C, spatial ...]``, as ``[N * n, G, K]``."""
    sizes, kernel = data.shape[2:], _kernel(node)
    rank = len(sizes)
    strides, dilations = _strides(node, rank), _dilations(node, rank)
    before, out_sizes = _geometry(node, sizes)
    chosen = _chosen(out_sizes, limit, rng)
    found = [inputs(chosen[d][:, None], kernel[d], strides[d], dilations[d], before[d]) for d in range(rank)]
    index, inside = _combined(found, sizes)
    rows = data.reshape(*data.shape[:2], -1)[:, :, index]  # [N, C, n, taps]
    if not inside.all():
        rows *= inside
    count, channels, n, taps = rows.shape
    groups = groups_of(node)
    split = rows.reshape(count, groups, channels // groups, n, taps).transpose(0, 3, 1, 2, 4)
    result: Floats = split.reshape(count * n, groups, -1)
    return result


def _combined(found: Sequence[RowIndices], sizes: Sequence[int]) -> tuple[RowIndices, NDArray[np.bool_]]:
    """Combine positions along each axis, ``[n, taps of the axis]``, into flat indices ``[n, taps]``.

    Returns:
        The flat indices, and a mask of the positions inside the input; the others are padding.
    """
    index, inside = np.zeros((len(found[0]), 1), np.int64), np.ones((len(found[0]), 1), bool)
    for place, size in zip(found, sizes, strict=True):
        valid = (place >= 0) & (place < size)
        index = (index[:, :, None] * size + np.where(valid, place, 0)[:, None, :]).reshape(len(place), -1)
        inside = (inside[:, :, None] & valid[:, None, :]).reshape(len(place), -1)
    return index, inside


def _kernel(node: ir.Node) -> tuple[int, ...]:
    return weight_shape(node)[2:]


@dataclass(frozen=True)
class _Axis:
    """One spatial axis of a convolution.

    Attributes:
        size: size of the input.
        span: number of elements that the dilated kernel covers.
        stride: distance between two positions of the kernel.
        pads: zeros in front and at the end, where ``auto_pad`` is not given.
        extra: ``output_padding``.
        wanted: ``output_shape``; None if it is not given.
    """

    size: int
    span: int
    stride: int
    pads: tuple[int, int]
    extra: int
    wanted: int | None


def _geometry(node: ir.Node, sizes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Compute the padding in front and the size of the output, for each spatial axis.

    https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__ConvTranspose.html
    """
    padded = _transposed_axis if node.op_type == "ConvTranspose" else _conv_axis
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    both = [padded(axis, auto) for axis in _axes(node, sizes)]
    return [front for front, _ in both], [size for _, size in both]


def _axes(node: ir.Node, sizes: Sequence[int]) -> list[_Axis]:
    rank, kernel = len(sizes), _kernel(node)
    strides, dilations = _strides(node, rank), _dilations(node, rank)
    pads = ints_attribute(node, "pads", (0,) * (2 * rank))
    extra = ints_attribute(node, "output_padding", (0,) * rank)
    wanted = ints_attribute(node, "output_shape", ())[-rank:]
    return [
        _Axis(
            size=sizes[d],
            span=(kernel[d] - 1) * dilations[d] + 1,
            stride=strides[d],
            pads=(pads[d], pads[d + rank]),
            extra=extra[d],
            wanted=wanted[d] if wanted else None,
        )
        for d in range(rank)
    ]


def _strides(node: ir.Node, rank: int) -> tuple[int, ...]:
    return ints_attribute(node, "strides", (1,) * rank)


def _dilations(node: ir.Node, rank: int) -> tuple[int, ...]:
    return ints_attribute(node, "dilations", (1,) * rank)


def _conv_axis(axis: _Axis, auto: str) -> tuple[int, int]:
    if not auto.startswith("SAME"):
        front, total = axis.pads[0], sum(axis.pads)
    else:
        total = max(0, (-(-axis.size // axis.stride) - 1) * axis.stride + axis.span - axis.size)
        front = total - total // 2 if auto == "SAME_LOWER" else total // 2
    return front, (axis.size + total - axis.span) // axis.stride + 1


def _transposed_axis(axis: _Axis, auto: str) -> tuple[int, int]:
    full = (axis.size - 1) * axis.stride + axis.span + axis.extra
    if axis.wanted is None and not auto.startswith("SAME"):
        return axis.pads[0], full - sum(axis.pads)
    out = min(full, axis.size * axis.stride) if axis.wanted is None else axis.wanted
    total = max(0, full - out)
    return (total // 2 if auto == "SAME_UPPER" else total - total // 2), out


def _chosen(sizes: Sequence[int], limit: int, rng: np.random.Generator) -> list[RowIndices]:
    """Choose at most ``limit`` distinct output positions at random; return one index array per axis."""
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
