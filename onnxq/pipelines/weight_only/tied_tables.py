"""Share the matrix that is embedding table and last matrix (tied) as one table in 8 bits, for ONNX Runtime.

A 4-bit copy of the last matrix beside a float table takes more space than one table in 8 bits, and is less
accurate. GatherBlockQuantized looks up rows of uint8 ``[V, D]``; MatMulNBits reads the same numbers through a
Reshape to ``[V, D / size, size]``. Both take a scale for each block, and 128 as zero point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxq.algorithms.weights.block_scales import BlockGrid
from onnxq.graph.nodes import add_initializer, input_at
from onnxq.pipelines.weight_only.block_scheme import BlockScheme
from onnxq.pipelines.weight_only.block_writer import BlockWriter
from onnxq.pipelines.weight_only.products import Planned, Product, is_named, table_values
from onnxq.pipelines.weight_only.rewrites import add_node, multiply_blocks, replace_node
from onnxq.planner.context import deselected

BITS = 8
"""The bits of a tied table, whatever those of other matrices are."""

_FLOAT_TABLE = (
    "its matrix is an embedding table too, which stays float (--include with its name quantizes it)"
)


@dataclass(frozen=True)
class TiedTable:
    """A matrix that is looked up and multiplied with.

    Attributes:
        look_ups: the nodes Gather.
        products: the products, with V rows of the table as outputs.
        size: the block size.
    """

    look_ups: tuple[ir.Node, ...]
    products: tuple[Product, ...]
    size: int


def find_tied(
    model: ir.Model, planned: Planned, scheme: BlockScheme
) -> tuple[Planned, tuple[TiedTable, ...]]:
    """Take the products with tied tables out of a plan.

    Where a table cannot be shared, its products stay float, unless they are included by name.

    Returns:
        The plan of the other products, and the tied tables.
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
        size = _shared_block(tables[value], products, scheme)
        if size is not None:
            found.append(TiedTable(tuple(tables[value]), tuple(products), size))
            continue
        kept += [each for each in products if is_named(each.node, scheme)]
        floats |= {each.node: _FLOAT_TABLE for each in products if not is_named(each.node, scheme)}
    return Planned(tuple(kept), floats), tuple(found)


def rewrite_tied(table: TiedTable, scheme: BlockScheme, writer: BlockWriter) -> None:
    """Let the nodes of a tied table read one table in 8 bits."""
    first = table.products[0]
    grid = BlockGrid(BITS, True, table.size, first.operand.dtype.numpy())
    stored = writer.table_blocks(first, grid)
    for node in table.look_ups:
        inputs = [stored.levels, input_at(node, 1), stored.scale]
        attributes: Mapping[str, int] = {
            "bits": BITS,
            "block_size": table.size,
            "gather_axis": 0,
            "quantize_axis": 1,
        }
        replace_node(node, add_node("GatherBlockQuantized", inputs, attributes, node, writer))
    count, columns = first.sizes
    shape = np.array([count, columns // table.size, table.size], np.int64)
    sizes = add_initializer(writer.model, writer.name(f"{stored.levels.name}_shape"), shape)
    for product in table.products:
        levels = add_node("Reshape", [stored.levels, sizes], {}, product.node, writer)
        multiply_blocks(product, replace(stored, levels=levels), (BITS, table.size), scheme, writer)


def _shared_block(look_ups: list[ir.Node], products: list[Product], scheme: BlockScheme) -> int | None:
    """Return the block size of the shared table; None if it cannot be shared."""
    selected = all(deselected(node, scheme.config) is None for node in look_ups)
    by_rows = all(not product.rows_last for product in products)
    types = {product.operand.dtype for product in products} | {node.outputs[0].dtype for node in look_ups}
    one_type = len(types - {None}) == 1
    if scheme.format != "matmulnbits" or not (selected and by_rows and one_type):
        return None
    return scheme.table_block(products[0].sizes[1])
