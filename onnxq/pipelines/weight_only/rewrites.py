"""Let nodes read weights in blocks, in each of the two forms.

MatMulNBits of ONNX Runtime: ``A @ dequantize(B).T + bias``, with B ``[N, blocks, size * bits / 8]``.
https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
It takes one matrix: a stack of them gets one node each. ONNX Runtime would unpack a stack behind
DequantizeLinear at every call, which takes several times as long as the product in float.

DequantizeLinear with ``block_size`` (opset 21) before the unchanged node: every runtime of that opset takes
it, and those with kernels for it fuse the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from onnxq.core.option_types import BlockFormat
from onnxq.graph.nodes import add_initializer, constant_value, input_at, name_of, rank, replace_value
from onnxq.graph.operators import attribute_value
from onnxq.pipelines.weight_only.block_scheme import BlockScheme
from onnxq.pipelines.weight_only.block_writer import Blocks, BlockWriter
from onnxq.pipelines.weight_only.products import Product

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


def rewrite_product(product: Product, scheme: BlockScheme, writer: BlockWriter) -> None:
    """Give a product its weights in the form of ``scheme``."""
    _FORMS[scheme.format](product, scheme, writer)


def multiply_blocks(
    product: Product,
    stack: Sequence[Blocks],
    sizes: tuple[int, int],
    scheme: BlockScheme,
    writer: BlockWriter,
) -> None:
    """Replace a product by MatMulNBits.

    ``W @ x`` becomes ``(x.T @ W.T).T``, and the data of a Gemm with transA is transposed. A bias of a Gemm
    that is no constant vector is added afterwards. alpha must be in the scales already.

    Args:
        product: the product.
        stack: its weights, one matrix or a stack of them.
        sizes: bits and block size.
        scheme: has the accuracy level.
        writer: names new nodes.
    """
    node, data = product.node, product.data
    assert data is not None
    if product.index == 0 or attribute_value(node, "transA"):
        data = _swapped(data, rank(data) or 2, node, writer)
    bias = _bias(product, writer)
    inside = bias if bias is not None and bias.is_initializer() and rank(bias) == 1 else None
    count, columns = product.sizes
    attributes = {"K": columns, "N": count, "bits": sizes[0], "block_size": sizes[1]}
    attributes["accuracy_level"] = scheme.accuracy_level
    results = []
    for part, blocks in zip(_parts(product, data, len(stack), writer), stack, strict=True):
        inputs = _given([part, blocks.levels, blocks.scale, blocks.zero, None, inside])
        results.append(add_node("MatMulNBits", inputs, attributes, node, writer))
    result = results[0] if len(results) == 1 else add_node("Concat", results, {"axis": -3}, node, writer)
    if bias is not None and inside is None:
        result = add_node("Add", [result, bias], {}, node, writer)
    if product.index == 0:
        result = _swapped(result, rank(product.data) or 2, node, writer)
    replace_node(node, result)


def _parts(product: Product, data: ir.Value, count: int, writer: BlockWriter) -> Sequence[ir.Value]:
    """Return what each matrix of a stack is multiplied with: ``[..., 1, M, K]`` of ``[..., count, M, K]``.

    Data with 1 in place of the count, or with two axes, is the same for all.
    """
    if count == 1:
        return [data]
    assert product.data is not None
    assert product.data.shape is not None
    size = product.data.shape[-3] if len(product.data.shape) > 2 else None
    if size is None:
        data = _expanded(data, 1, product.node, writer)
    if size is None or size == 1:
        return [data] * count
    if size != count:  # known at run time only
        data = _expanded(data, count, product.node, writer)
    ones = writer.name(f"{name_of(product.node)}_ones")
    sizes = add_initializer(writer.model, ones, np.ones(count, np.int64))
    split = ir.node("Split", [data, sizes], {"axis": -3}, num_outputs=count)
    return _insert(split, product.node, writer).outputs


def _expanded(data: ir.Value, count: int, before: ir.Node, writer: BlockWriter) -> ir.Value:
    """Broadcast data to at least three axes, with ``count`` in place of 1 at the third last."""
    name = writer.name(f"{name_of(before)}_stack")
    shape = add_initializer(writer.model, name, np.array([count, 1, 1], np.int64))
    return add_node("Expand", [data, shape], {}, before, writer)


def add_node(
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, Any],
    before: ir.Node,
    writer: BlockWriter,
) -> ir.Value:
    """Insert a node with one output before another one, and return its output.

    Args:
        op_type: its operator; one that ONNX does not have is ONNX Runtime's.
        inputs: its inputs; None for a missing one.
        attributes: its attributes.
        before: the node to insert it before.
        writer: names it.
    """
    domain = CONTRIB if op_type in _CONTRIB_OPERATORS else ""
    if domain:
        writer.model.graph.opset_imports.setdefault(CONTRIB, 1)
    node = ir.node(op_type, inputs, attributes=attributes, domain=domain)
    return _insert(node, before, writer).outputs[0]


def _insert(node: ir.Node, before: ir.Node, writer: BlockWriter) -> ir.Node:
    """Insert a node before another one, with names for it and its outputs."""
    node.name = writer.name(f"{name_of(before)}_{node.op_type}")
    for output in node.outputs:
        output.name = writer.name(f"{node.name}_out")
    assert before.graph is not None
    before.graph.insert_before(before, node)
    return node


def replace_node(node: ir.Node, result: ir.Value) -> None:
    """Let all readers of a node read ``result``, and remove the node."""
    replace_value(node.outputs[0], result)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


_CONTRIB_OPERATORS = frozenset({"MatMulNBits", "GatherBlockQuantized"})


def _bias(product: Product, writer: BlockWriter) -> ir.Value | None:
    """Return the bias of a Gemm times its beta; None if it has none."""
    node = product.node
    bias, beta = input_at(node, 2), float(attribute_value(node, "beta") or 0)
    if bias is None or beta == 1:
        return bias
    array = constant_value(bias)
    if array is not None:
        scaled = (array.astype(np.float64) * beta).astype(array.dtype)
        return add_initializer(writer.model, writer.name(f"{bias.name}_times_beta"), scaled)
    number = np.array(beta, product.operand.dtype.numpy())
    factor = add_initializer(writer.model, writer.name(f"{name_of(node)}_beta"), number)
    return add_node("Mul", [bias, factor], {}, node, writer)


def _as_operator(product: Product, scheme: BlockScheme, writer: BlockWriter) -> None:
    grid = scheme.grid(product.operand.dtype)
    multiply_blocks(product, writer.operator_blocks(product, grid), (grid.bits, grid.size), scheme, writer)


def _dequantized(product: Product, scheme: BlockScheme, writer: BlockWriter) -> None:
    grid = scheme.grid(product.operand.dtype)
    blocks = writer.dequantize_blocks(product, grid, scheme.dtype)
    axes = len(product.operand.shape)
    attributes = {"axis": axes + product.summed, "block_size": scheme.size}
    inputs = _given([blocks.levels, blocks.scale, blocks.zero])
    main, node = writer.model.graph, product.node
    # ONNX Runtime does not load a DequantizeLinear in a body whose constants are outside.
    before = node if node.graph is main else main[0]
    weight = add_node("DequantizeLinear", inputs, attributes, before, writer)
    weight.type, weight.shape = ir.TensorType(product.operand.dtype), ir.Shape(product.operand.shape)
    product.node.replace_input_with(product.index, weight)


_FORMS: Mapping[BlockFormat, Callable[[Product, BlockScheme, BlockWriter], None]] = {
    "matmulnbits": _as_operator,
    "dequantize": _dequantized,
}


def _swapped(value: ir.Value, axes: int, before: ir.Node, writer: BlockWriter) -> ir.Value:
    """Swap the last two axes of ``value``."""
    perm = [*range(axes - 2), axes - 1, axes - 2]
    return add_node("Transpose", [value], {"perm": perm}, before, writer)


def _given(inputs: Sequence[ir.Value | None]) -> list[ir.Value | None]:
    """Leave out the last inputs that are missing."""
    last = max(index for index, value in enumerate(inputs) if value is not None)
    return list(inputs[: last + 1])
