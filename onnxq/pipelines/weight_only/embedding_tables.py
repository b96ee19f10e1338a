"""Embedding tables in 8 bits: alone, or shared with the last matrix (tied).

A 4-bit copy of the last matrix beside a float table takes more space than one table in 8 bits, and is less
accurate. There are two forms:

- with ONNX Runtime's operators, GatherBlockQuantized looks up rows of uint8 ``[V, D]``; MatMulNBits reads the
  same numbers through a Reshape to ``[V, D / size, size]``. Both take a scale for each block, and 128 as zero
  point.
- with standard operators, rows have one scale each: ``Cast(Gather(q, i)) * Gather(s, i)``, and the product
  reads ``Transpose(DequantizeLinear(q, s))``, for which ONNX Runtime and OpenVINO have kernels. ONNX Runtime
  would unpack a whole table behind DequantizeLinear for each look-up.

Tables of sines and cosines are looked up too, by position: rows that other data is multiplied with stay
float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.weights.block_scales import BlockGrid
from onnxq.graph.nodes import add_initializer, constant_value, input_at, is_op
from onnxq.graph.operators import MOVING
from onnxq.graph.stored_numbers import remapped
from onnxq.pipelines.weight_only.block_scheme import FLOATS, BlockScheme
from onnxq.pipelines.weight_only.block_writer import BlockWriter
from onnxq.pipelines.weight_only.products import Planned, Product, is_named, table_values
from onnxq.pipelines.weight_only.rewrites import add_node, multiply_blocks, replace_node
from onnxq.pipelines.weight_only.stored_operand import stored_operand
from onnxq.planner.context import deselected
from onnxq.planner.float_regions.angles import angle_nodes

LEAST_TABLE = 2**14
"""The fewest elements of a table that nothing is multiplied with: there is little to save in smaller ones."""

BITS = 8
"""The bits of a table, whatever those of other matrices are."""

_FLOAT_TABLE = (
    "its matrix is an embedding table too, which stays float (--include with its name quantizes it)"
)


@dataclass(frozen=True)
class TiedTable:
    """A matrix that is looked up, and perhaps multiplied with.

    Attributes:
        look_ups: the nodes Gather.
        products: the products, with V rows of the table as outputs; none if it is an embedding table alone.
        size: the block size of ONNX Runtime's operators; None: a scale for each row, for standard operators.
    """

    look_ups: tuple[ir.Node, ...]
    products: tuple[Product, ...]
    size: int | None

    @property
    def dtype(self) -> ir.DataType:
        """The type that the table is stored in."""
        return ir.DataType.INT8 if self.size is None else ir.DataType.UINT8

    @property
    def matrix(self) -> Product:
        """The table with its layout."""
        return self.products[0] if self.products else _looked_up(self.look_ups[0])


def find_tied(
    model: ir.Model, planned: Planned, scheme: BlockScheme
) -> tuple[Planned, tuple[TiedTable, ...]]:
    """Take the products with tied tables out of a plan, and find the tables that are looked up only.

    Where a table cannot be shared, its products stay float, unless they are included by name.

    Returns:
        The plan of the other products, and the tables.
    """
    tables, found = table_values(model), list[TiedTable]()
    floats, kept = dict(planned.float_nodes), list[Product]()
    by_value: dict[ir.Value, list[Product]] = {}
    for product in planned.products:
        if product.operand.value in tables:
            by_value.setdefault(product.operand.value, []).append(product)
        else:
            kept.append(product)
    for value, products in by_value.items():
        if _is_shareable(tables[value], products, scheme):
            size = scheme.table_block(products[0].sizes[1])
            found.append(TiedTable(tuple(tables[value]), tuple(products), size))
            continue
        kept += [each for each in products if is_named(each.node, scheme)]
        floats |= {each.node: _FLOAT_TABLE for each in products if not is_named(each.node, scheme)}
    products_of = {product.operand.value for product in planned.products}
    angles = {node for graph in model.graphs() for node in angle_nodes(graph)}
    for value, look_ups in tables.items():
        if value in products_of or angles & set(look_ups) or not _is_lone(value, look_ups, scheme):
            continue
        size = scheme.table_block(_looked_up(look_ups[0]).sizes[1])
        found.append(TiedTable(tuple(look_ups), (), size))
    return Planned(tuple(kept), floats), tuple(found)


def rewrite_tied(table: TiedTable, scheme: BlockScheme, writer: BlockWriter) -> None:
    """Let the nodes of a tied table read one table in 8 bits."""
    if table.size is None:
        _by_rows(table, writer)
    else:
        _by_blocks(table, table.size, scheme, writer)


def _by_blocks(table: TiedTable, size: int, scheme: BlockScheme, writer: BlockWriter) -> None:
    first = table.matrix
    grid = BlockGrid(BITS, True, size, first.operand.dtype.numpy())
    stored = writer.table_blocks(first, grid)
    for node in table.look_ups:
        inputs = [stored.levels, input_at(node, 1), stored.scale]
        attributes: Mapping[str, int] = {
            "bits": BITS,
            "block_size": size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        replace_node(node, add_node("GatherBlockQuantized", inputs, attributes, node, writer))
    if not table.products:
        return
    count, columns = first.sizes
    shape = np.array([count, columns // size, size], np.int64)
    sizes = add_initializer(writer.model, writer.name(f"{stored.levels.name}_shape"), shape)
    for product in table.products:
        levels = add_node("Reshape", [stored.levels, sizes], {}, product.node, writer)
        multiply_blocks(product, [replace(stored, levels=levels)], (BITS, size), scheme, writer)


def _by_rows(table: TiedTable, writer: BlockWriter) -> None:
    dtype = table.matrix.operand.dtype
    stored = writer.table_rows(table.matrix, BlockGrid(BITS, True, table.matrix.sizes[1], dtype.numpy()))
    for node in table.look_ups:
        found = [
            add_node("Gather", [source, input_at(node, 1)], {}, node, writer)
            for source in (stored.levels, stored.scale)
        ]
        reals = add_node("Cast", found[:1], {"to": dtype}, node, writer)
        replace_node(node, add_node("Mul", [reals, found[1]], {}, node, writer))
    if not table.products:
        return
    first = writer.model.graph[0]  # ONNX Runtime loads no DequantizeLinear of outer constants in a body
    assert stored.scale.const_value is not None
    # ONNX Runtime does not read scales right that a Reshape computes.
    flat = np.array(remapped(stored.scale.const_value).numpy()).reshape(-1)
    scale = add_initializer(writer.model, writer.name(f"{stored.scale.name}_flat"), flat)
    matrix = add_node("DequantizeLinear", [stored.levels, scale], {"axis": 0}, first, writer)
    matrix.type, matrix.shape = ir.TensorType(dtype), ir.Shape(table.matrix.sizes)
    turned = None
    for product in table.products:
        if product.operand.transposed and turned is None:
            turned = add_node("Transpose", [matrix], {"perm": [1, 0]}, first, writer)
        product.node.replace_input_with(product.index, turned if product.operand.transposed else matrix)


def _is_shareable(look_ups: list[ir.Node], products: list[Product], scheme: BlockScheme) -> bool:
    """Whether all readers of a tied table can share one in 8 bits."""
    selected = all(deselected(node, scheme.config) is None for node in look_ups)
    by_rows = all(not product.rows_last for product in products)
    types = {product.operand.dtype for product in products} | {node.outputs[0].dtype for node in look_ups}
    one_type = len(types - {None}) == 1
    plain = scheme.format == "dequantize" or all(product.factor == 1 for product in products)
    return _has_tables(scheme) and selected and by_rows and one_type and plain


def _has_tables(scheme: BlockScheme) -> bool:
    """Whether the runtime looks up rows in integers."""
    return scheme.format == "matmulnbits" or scheme.target.integer_tables


def _is_lone(value: ir.Value, look_ups: list[ir.Node], scheme: BlockScheme) -> bool:
    """Whether a table that is looked up only gets 8 bits."""
    table = _looked_up(look_ups[0])
    types = {table.operand.dtype, table.operand.tensor.dtype}
    if not _has_tables(scheme) or not types <= FLOATS or table.operand.transposed:
        return False
    if table.operand.tensor.size < LEAST_TABLE or any(deselected(node, scheme.config) for node in look_ups):
        return False
    direct = {use.node for use in value.uses()} <= set(look_ups) and table.operand.dtype == value.dtype
    return direct and not any(_multiplies(node.outputs[0]) for node in look_ups)


def _looked_up(node: ir.Node) -> Product:
    operand = stored_operand(input_at(node, 0))
    assert operand is not None
    return Product(node, 0, operand, -1)


def _multiplies(rows: ir.Value) -> bool:
    """Whether other data is multiplied with the rows, as with sines and cosines."""
    for node, index in rows.uses():
        if is_op(node, "Mul") and constant_value(node.inputs[1 - index]) is None:
            return True
        if is_op(node, *MOVING, "Cast", "Concat", "Neg") and any(_multiplies(out) for out in node.outputs):
            return True
    return False
