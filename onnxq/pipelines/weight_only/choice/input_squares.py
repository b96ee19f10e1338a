"""Mean squares of the inputs of products: the float model runs on some samples, or on random token ids.

Ids drawn evenly from an embedding table are no text, but how large an input channel is depends more on the
model than on the text. The model runs in parts of limited weights; each part gives the mean squares of the
inputs of its products, and the activations that later parts read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from calibrators.data.samples import Sample, input_specs
from calibrators.data.synthetic import token_sample
from calibrators.errors import CalibrationError
from calibrators.onnx_files import stored_tensors
from onnxq.algorithms.layers.im2col import Floats
from onnxq.algorithms.layers.stepwise import iterate_steps
from onnxq.calibration.sample_split import evenly
from onnxq.core.config import QuantConfig
from onnxq.core.progress import Progress
from onnxq.graph.nodes import add_initializer, name_of
from onnxq.graph.passes import typed
from onnxq.pipelines.weight_only.choice.staged_run import observable
from onnxq.pipelines.weight_only.products import Product

logger = logging.getLogger(__name__)

SAMPLES, LENGTH = 4, 128
"""The number of samples, and of token ids in each."""

MOST_BYTES = 2**30
"""The most bytes of weights of a model that is run: more would take longer than rounding them."""

PART_BYTES = 2**26
"""The bytes of weights of a part, from which on it ends."""


def input_squares(
    model: ir.Model,
    products: Sequence[Product],
    config: QuantConfig,
    progress: Progress,
    samples: Sequence[Sample] = (),
) -> Mapping[str, Floats]:
    """Measure the mean square of each input of products on given samples, or on random token ids.

    Args:
        model: the float model as one graph; it is not changed.
        products: its products.
        config: the options.
        progress: called with the parts done.
        samples: samples of which `SAMPLES` are run.

    Returns:
        Name of a product's node -> ``[K]``; nothing without samples if the model takes no token ids, is
        larger than `MOST_BYTES`, or does not run.
    """
    if samples:
        return _measured(typed(model), products, evenly(samples, SAMPLES), config.threads, progress)
    inputs = input_specs(model)
    made = (token_sample(model, inputs, LENGTH, (config.seed, number)) for number in range(SAMPLES))
    batches = [sample for sample in made if sample is not None]
    if not batches:
        return {}
    size = sum(tensor.nbytes for tensor in stored_tensors(model))
    if size > MOST_BYTES:
        logger.warning(
            "%d MiB of weights are too large to run on random token ids: rounding without data guesses how "
            "large the inputs of matrices are",
            size >> 20,
        )
        return {}
    try:
        return _measured(typed(model), products, batches, config.threads, progress)
    except CalibrationError as error:
        logger.info("random token ids do not suit the model, so what inputs are like is guessed: %s", error)
        return {}


def _measured(
    model: ir.Model, products: Sequence[Product], batches: Sequence[Sample], threads: int, progress: Progress
) -> dict[str, Floats]:
    able = [each for each in observable(model, products) if _by_rows(each)]
    values = {value.name: value for node in model.graph for value in node.outputs}
    read: dict[ir.Value, list[Product]] = {}
    for product in able:
        value = values.get(name_of(product.data)) if product.data is not None else None
        if value is not None:
            read.setdefault(value, []).append(product)
    ordered = [value for node in model.graph for value in node.outputs if value in read]
    parts = {_concatenated(model, part, read): part for part in _in_parts(ordered, read)}
    found: dict[str, Floats] = {}
    for done, (stop, arrays) in enumerate(iterate_steps(model, list(parts), batches, threads)):
        progress("measuring inputs of products", done, len(parts))
        squares = np.mean([np.asarray(array, np.float32) for array in arrays], axis=0)
        for value in parts[stop]:
            columns = read[value][0].sizes[1]
            found |= {name_of(product.node): squares[0, :columns] for product in read[value]}
            squares = squares[:, columns:]
    return {name: each for name, each in found.items() if np.isfinite(each).all()}


def _by_rows(product: Product) -> bool:
    """Whether the last axis of its input is summed."""
    return product.index == 1 and product.node.attributes.get_int("transA", 0) == 0


def _in_parts(
    ordered: Sequence[ir.Value], read: Mapping[ir.Value, Sequence[Product]]
) -> Iterator[list[ir.Value]]:
    """Split activations where the weights that read them are many enough for a part."""
    part, size = list[ir.Value](), 0
    for value in ordered:
        part.append(value)
        size += sum(product.operand.tensor.nbytes for product in read[value])
        if size >= PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _concatenated(
    model: ir.Model, part: Sequence[ir.Value], read: Mapping[ir.Value, Sequence[Product]]
) -> str:
    """Add nodes that compute the mean squares of activations, one behind the other; return their name."""
    first = add_initializer(model, "first_axis", np.array([0], np.int64))
    squares = []
    for value in part:
        rows = add_initializer(model, f"{value.name}_rows", np.array([-1, read[value][0].sizes[1]], np.int64))
        flat = _added(model, "Reshape", [_added(model, "Cast", [value], {"to": 1}), rows], {})
        squares.append(_added(model, "ReduceSum", [_added(model, "Mul", [flat, flat], {}), first], {}))
    return name_of(_added(model, "Concat", squares, {"axis": 1}))


def _added(
    model: ir.Model, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int]
) -> ir.Value:
    """Append a node with a float32 output."""
    node = ir.node(op_type, inputs, attributes=attributes)
    model.graph.append(node)
    (output,) = node.outputs
    output.name = f"{inputs[0].name}_{op_type}_of_squares"
    node.name, output.type = output.name, ir.TensorType(ir.DataType.FLOAT)
    return output
