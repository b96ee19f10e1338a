"""Read tensors as convolutions leave them, without copying them into the order of the model.

On x86, ONNX Runtime computes convolutions in blocks of 8 or 16 channels (NCHWc). Each tensor that is asked
for is copied from this layout to that of the model, by a node ReorderOutput. Where a whole network is
observed, the copies take about a third of a run. A histogram and extremes need no order, so they are taken
from the blocks: the same values, in another order.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort

from calibrators.errors import CalibrationError
from calibrators.held_noise import draws
from calibrators.onnx_files import read_model, root_graphs, stored_tensors, to_proto
from calibrators.session import as_model, open_session

logger = logging.getLogger(__name__)

LARGEST_BLOCK = 16
"""A multiple of the sizes of blocks. Other numbers of channels are padded with zeros, which do not count."""

MOST_BYTES = 2**28
"""Largest size of the weights, which are written to a temporary folder."""

EIGHT_BITS = ("Quantize", "Integer", "QLinear")
"""Parts of the names of operators whose kernels `open_session` may have to replace by exact ones."""


def open_unordered(
    model: ir.Model | str | os.PathLike[str], outputs: Sequence[str], ordered: Collection[str], threads: int
) -> ort.InferenceSession:
    """Open a session on the CPU that gives ``outputs``; the values of each sample may come in another order.

    Args:
        model: a model, or the path of one; it is not changed.
        outputs: tensors of the main graph to return.
        ordered: those of them that must keep their order and shape.
        threads: number of threads within a node.

    Raises:
        CalibrationError: a tensor is unknown, or ONNX Runtime refuses the model.
    """
    if _may_use_blocks(as_model(model)):
        with tempfile.TemporaryDirectory(prefix="calibrate-", ignore_cleanup_errors=True) as folder:
            try:
                return _open_in_blocks(model, outputs, ordered, threads, Path(folder) / "optimized.onnx")
            except CalibrationError as error:  # the model itself opens below, or tells why it does not
                logger.info("tensors are copied into the order of the model: %s", error)
    return open_session(model, outputs=outputs, threads=threads, alone=False)


def _may_use_blocks(model: ir.Model) -> bool:
    """Whether ONNX Runtime may use blocks of channels, and opens the optimized model as it opens this one."""
    roots = root_graphs(model)
    kinds = {node.op_type for root in roots for node in ir.traversal.RecursiveGraphIterator(root)}
    return (
        "Conv" in kinds
        and not any(part in kind for kind in kinds for part in EIGHT_BITS)
        and not draws(model)
        and sum(tensor.nbytes for tensor in stored_tensors(model)) <= MOST_BYTES
    )


def _open_in_blocks(
    model: ir.Model | str | os.PathLike[str],
    outputs: Sequence[str],
    ordered: Collection[str],
    threads: int,
    file: Path,
) -> ort.InferenceSession:
    """Let ONNX Runtime write the model as it runs to ``file``, and open that without the copies.

    Raises:
        CalibrationError: ONNX Runtime refuses the model, or what it wrote itself.
    """
    session = open_session(model, outputs=outputs, threads=threads, alone=False, save_fused=file, layout=True)
    optimized = read_model(file)
    if not _skip_copies(optimized.graph, ordered):
        return session
    del session  # and with it a copy of the weights
    onnx.save(to_proto(optimized), file)
    return open_session(file, threads=threads, alone=False, optimize=False)


def _skip_copies(graph: ir.Graph, ordered: Collection[str]) -> int:
    """Make the tensors in blocks outputs, under the same names; return how many."""
    skipped = 0
    for index, output in enumerate(graph.outputs):
        node = output.producer()
        if node is None or node.op_type != "ReorderOutput" or output.name in ordered:
            continue
        blocks = node.inputs[0]
        if blocks is None or blocks.is_graph_output() or node.attributes["channels"].as_int() % LARGEST_BLOCK:
            continue
        blocks.type, blocks.name, output.name = output.type, output.name, f"{output.name}/in order"
        graph.outputs[index] = blocks
        if not output.uses():
            graph.remove(node, safe=True)
        skipped += 1
    return skipped
