"""Measure what few bits cost, one group of products at a time.

A group are the products that read the same activation, such as query, key and value. The weights of the float
model become inputs of one session; then the weights of one group after the other are fed rounded, and the
outputs are compared with the float model's. Costs of groups add up as long as they are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
import onnxruntime as ort

from calibrators.data.samples import Array, Sample
from calibrators.errors import CalibrationError
from calibrators.session import RUNTIME_ERRORS, brief, open_session
from onnxq.algorithms.layers.im2col import Floats
from onnxq.core.progress import Progress
from onnxq.graph.nodes import name_of
from onnxq.graph.passes import typed
from onnxq.pipelines.weight_only.choice.draft_writers import figure
from onnxq.pipelines.weight_only.products import Product, read_layout
from onnxq.verify.accuracy import outcome
from onnxq.verify.outputs.output_kinds import output_kinds

Group = tuple[Product, ...]


def groups_of(products: Sequence[Product]) -> list[Group]:
    """Group products that read the same activation, or the same matrix."""
    found: dict[object, list[Product]] = {}
    owner: dict[ir.Value, object] = {}
    for product in products:
        key = owner.setdefault(product.operand.value, product.data)
        found.setdefault(key, []).append(product)
    return [tuple(each) for each in found.values()]


def measured_costs(
    model: ir.Model,
    groups: Sequence[Group],
    rounded: Callable[[Product], Floats],
    samples: Sequence[Sample],
    progress: Progress,
) -> list[float]:
    """Measure the figure of the model with one group rounded, for each group: KL divergence, or noise.

    Args:
        model: the float model as one graph; it is not changed.
        groups: its groups.
        rounded: returns the rounded weights of a product, ``[N, K]``.
        samples: the samples to run.
        progress: called with the number of groups done.

    Raises:
        CalibrationError: the model does not run.
    """
    run = _FedWeights(model, [product for group in groups for product in group], samples)
    kinds = output_kinds(model)
    exact, count = run.outputs({}), sum(sample.count for sample in samples)
    costs = []
    for done, group in enumerate(groups):
        progress("measuring what few bits cost", done, len(groups))
        changed = {name_of(product.node): _fed(product, rounded(product)) for product in group}
        pairs = zip(exact, run.outputs(changed), strict=True)
        costs.append(figure(outcome(kinds, pairs, count)))
    return costs


def _fed(product: Product, rows: Floats) -> Array:
    """Return weights ``[N, K]`` as the node reads them."""
    return read_layout(rows, product).astype(product.operand.dtype.numpy())


class _FedWeights:
    """A session of a model whose weights are inputs."""

    def __init__(self, model: ir.Model, products: Sequence[Product], samples: Sequence[Sample]) -> None:
        self._samples = samples
        copy = typed(model)
        nodes = {node.name: node for graph in copy.graphs() for node in graph}
        self._weights = {}
        for product in products:
            name = f"{name_of(product.node)}_fed"
            value = ir.val(
                name, type=ir.TensorType(product.operand.dtype), shape=ir.Shape(product.operand.shape)
            )
            copy.graph.inputs.append(value)
            nodes[product.node.name].replace_input_with(product.index, value)
            self._weights[name] = ort.OrtValue.ortvalue_from_numpy(_exact(product))
        self._session = open_session(copy, alone=False)
        self._names = [output.name for output in self._session.get_outputs()]

    def outputs(self, changed: dict[str, Array]) -> list[list[Array]]:
        """Run all samples with other weights of some nodes."""
        fed = {f"{name}_fed": ort.OrtValue.ortvalue_from_numpy(array) for name, array in changed.items()}
        return [self._run(sample, {**self._weights, **fed}) for sample in self._samples]

    def _run(self, sample: Sample, weights: dict[str, ort.OrtValue]) -> list[Array]:
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in sample.feeds.items()}
        try:
            found = self._session.run_with_ort_values(self._names, {**feeds, **weights})
        except RUNTIME_ERRORS as error:
            raise CalibrationError(f"the model cannot run {sample.name}: {brief(error)}") from error
        return [value.numpy() for value in found]


def _exact(product: Product) -> Array:
    read, count, columns = product.reader()
    return _fed(product, read(0, count).reshape(count, columns))
