"""Write the model: each matrix is read, rounded and written before the next one is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import onnx_ir as ir

from calibrators.onnx_files import load_external, to_proto
from calibrators.session import INLINE_BYTES
from onnxq.core.plan import QuantPlan, StoredWeights
from onnxq.core.progress import Progress
from onnxq.graph.files import INLINE_LIMIT
from onnxq.graph.nodes import name_of
from onnxq.graph.passes.redundancy import RemoveUnusedPass
from onnxq.pipelines.weight_only.block_scheme import BlockScheme
from onnxq.pipelines.weight_only.block_writer import BlockWriter
from onnxq.pipelines.weight_only.choice.rounding import Rounding
from onnxq.pipelines.weight_only.embedding_tables import TABLE_TYPE, TiedTable, rewrite_tied
from onnxq.pipelines.weight_only.products import Product
from onnxq.pipelines.weight_only.rewrites import rewrite_product
from onnxq.pipelines.weight_only.tensor_store import TensorStore

MEGABYTE = 10**6


@dataclass(frozen=True)
class WeightWork:
    """What is to be done to a model.

    Attributes:
        model: a model of one graph; the work takes place in it.
        products: the products that get weights in blocks.
        tied: the tables in 8 bits.
        scheme: the requested weights.
        plan: names of the quantized nodes, and reasons for the others.
        external: the given model has its weights in files beside it.
        schemes: name of a product's node -> the weights that it gets in place of ``scheme``.
    """

    model: ir.Model
    products: tuple[Product, ...]
    tied: tuple[TiedTable, ...]
    scheme: BlockScheme
    plan: QuantPlan
    external: bool
    schemes: Mapping[str, BlockScheme] = field(default_factory=dict)

    def scheme_of(self, product: Product) -> BlockScheme:
        """Return the weights that a product gets."""
        return self.schemes.get(name_of(product.node), self.scheme)

    @property
    def stored(self) -> dict[str, StoredWeights]:
        """Node name -> the format that its weights are written in."""
        found = {}
        for product in self.products:
            scheme = self.scheme_of(product)
            found[name_of(product.node)] = StoredWeights(scheme.dtype, scheme.size)
        for table in self.tied:
            readers = (*table.look_ups, *(product.node for product in table.products))
            found |= {name_of(node): StoredWeights(TABLE_TYPE, table.size) for node in readers}
        return found

    @property
    def bytes(self) -> int:
        """The bytes of all matrices that are read, each once."""
        operands = [each.operand for each in self.products]
        operands += [table.matrix.operand for table in self.tied]
        return sum({operand.value: operand.tensor.nbytes for operand in operands}.values())


def write_streamed(work: WeightWork, rounding: Rounding, draft: Path, progress: Progress) -> None:
    """Write the model to ``draft``; its weights go to a file beside it if they do in the given model.

    They do so too if they are more than a protobuf can hold.

    Args:
        work: the work; its model is changed.
        rounding: chooses the numbers.
        draft: the file to write.
        progress: called with the megabytes of float weights done.
    """
    data = draft.with_name(f"{draft.name}.data")
    with data.open("wb") as file:
        store = TensorStore(data, file)
        _quantize(work, rounding, store, progress)
        RemoveUnusedPass()(work.model)
        for value in list(_remaining(work.model, store)):
            assert value.const_value is not None
            value.const_value = store.copy(str(value.name), value.const_value)
    if work.external or store.bytes > INLINE_LIMIT:
        load_external(work.model, INLINE_BYTES)
        onnx.save(to_proto(work.model), draft, format="protobuf")
        return
    load_external(work.model)
    onnx.save(to_proto(work.model), draft, format="protobuf")
    data.unlink()


def _quantize(work: WeightWork, rounding: Rounding, store: TensorStore, progress: Progress) -> None:
    total, read = work.bytes // MEGABYTE, 0

    def done(count: int) -> None:
        nonlocal read
        read += count
        progress("quantizing weights (MB)", read // MEGABYTE, total)

    progress("quantizing weights (MB)", 0, total)
    writer = BlockWriter(work.model, store, rounding, done)
    for table in work.tied:
        rewrite_tied(table, work.scheme, writer)
    for product in rounding.in_order(work.products):
        rewrite_product(product, work.scheme_of(product), writer)


def _remaining(model: ir.Model, store: TensorStore) -> Iterator[ir.Value]:
    """Yield the large initializers that are not in the new file yet, and not of text."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.nbytes <= INLINE_BYTES or tensor.dtype == ir.DataType.STRING:
                continue
            if not store.holds(tensor):
                yield value
