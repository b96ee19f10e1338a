"""Hold the noise of a model: its random operators give the same numbers in every session and process.

ONNX Runtime seeds a random operator by its position in the graph and goes on drawing from run to run, even
with the attribute seed. So a float model and its quantized copy draw different numbers, which would look like
an error of quantization. Here random operators read their numbers from a table instead. The place where an
operator begins to read depends on the name of its node and on the name of the batch: all models with this
node, and parts of them, draw the same for the same batch, in any order and on any thread. (In a Loop, each
iteration draws the same.)

Only what a session runs is changed, never a file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx_ir.passes import common

from calibrators.errors import CalibrationError
from calibrators.onnx_files import has_opaque_types, root_graphs

Doubles = NDArray[np.float64]

LENGTH = 65_521
"""The length of a table: a prime number, so that reading with any step leads through all of it."""

START = "held_noise/start"
"""An input with a default: the place in the table that depends on the batch."""

ONNX_RUNTIME = "com.microsoft"
"""The domain of ONNX Runtime's own operators. Its Range exists whatever the opset of the model."""


def draws(model: ir.Model) -> bool:
    """Whether the model has random operators: in the main graph, in bodies or in functions."""
    nodes = (node for root in root_graphs(model) for node in ir.traversal.RecursiveGraphIterator(root))
    return any(map(_is_random, nodes))


def hold(model: ir.Model) -> ir.Model:
    """Return a copy whose random operators read tables (weights are shared), or the model if it has none.

    Raises:
        CalibrationError: random operators lie in a function that cannot be inlined.
    """
    if not draws(model):
        return model
    copy = model.clone()
    _inline(copy)
    _hide_weights(copy)
    copy.graph.opset_imports.setdefault(ONNX_RUNTIME, 1)
    start = _initializer(copy.graph, START, np.zeros((), np.int64))
    copy.graph.inputs.append(start)
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(copy.graph) if _is_random(node)]
    _type_inputs(copy, nodes)
    tables = {
        table: _initializer(copy.graph, f"held_noise{table.__name__}", np.asarray(table(), np.float32))
        for table in dict.fromkeys(_LAWS[node.op_type].table for node in nodes)
    }
    opset = copy.graph.opset_imports.get("", 1)
    for node, name in zip(nodes, _names(nodes), strict=True):
        law = _LAWS[node.op_type]
        noise = _Noise(f"held_noise/{name}", tables[law.table], start, _place(name), opset)
        law.replace(node, noise)
        _take_over(node, noise.nodes)
    return copy


def noise_feeds(session: ort.InferenceSession, batch: str) -> dict[str, NDArray[np.int64]]:
    """Return what a session of a held model is fed besides the batch; nothing for other models.

    Args:
        session: the session.
        batch: the name of the batch. Folders in it do not count: moved data give the same noise.
    """
    if all(value.name != START for value in session.get_overridable_initializers()):
        return {}
    return {START: np.array(_place(re.sub(r"\S*[/\\]", "", batch))[0], np.int64)}


def noisy_outputs(model: ir.Model) -> frozenset[str]:
    """Return the names of the outputs of a model that depend on random numbers."""
    reached: set[ir.Value] = set()
    for node in model.graph:
        run = [node, *_inner_nodes(node, model)]
        read = {value for each in run for value in each.inputs}
        if read & reached or any(map(_is_random, run)):
            reached.update(node.outputs)
    return frozenset(value.name or "" for value in model.graph.outputs if value in reached)


def _inner_nodes(node: ir.Node, model: ir.Model) -> Iterator[ir.Node]:
    """Yield what a node runs: the nodes of branches, of loop bodies, and of the function that it calls."""
    graphs = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    if function := model.functions.get(node.op_identifier()):
        graphs.append(function.graph)
    for inner in (each for graph in graphs for each in graph):
        yield inner
        yield from _inner_nodes(inner, model)


def _is_random(node: ir.Node) -> bool:
    if node.op_type not in _LAWS or node.domain:
        return False
    return node.op_type != "Dropout" or _is_training(node)


def _is_training(dropout: ir.Node) -> bool:
    """Whether a Dropout may be active: since opset 12 an input tells so, before it never is."""
    training = dropout.inputs[2] if len(dropout.inputs) > 2 else None
    if training is None:
        return False
    known = ir.convenience.get_const_tensor(training)
    return known is None or bool(known.numpy().any())


def _inline(model: ir.Model) -> None:
    """Inline functions, as the simplification of a model does: their nodes get the same names here."""
    try:
        common.InlinePass()(model)
    except (ir.passes.PassError, ValueError) as error:
        raise CalibrationError(
            f"random operators lie in a function that cannot be inlined ({error.__cause__ or error}), so "
            "they would give other numbers in each run. Export the model without functions."
        ) from error


def _hide_weights(model: ir.Model) -> None:
    """Take weights off the inputs of an old file, which has to list them; START needs a newer version."""
    if model.ir_version < 4:
        model.ir_version = 4
        common.RemoveInitializersFromInputsPass()(model)


def _type_inputs(model: ir.Model, nodes: Sequence[ir.Node]) -> None:
    """Infer types if a node takes its type from an input whose type the file does not tell."""
    untyped = any(n.inputs and n.inputs[0] is not None and n.inputs[0].dtype is None for n in nodes)
    if untyped and not has_opaque_types(model):
        common.ShapeInferencePass(check_type=False, strict_mode=False)(model)


def _names(nodes: Sequence[ir.Node]) -> Iterator[str]:
    """Name each node as the simplification of a model does where names are missing or used twice."""
    seen: Counter[str] = Counter()
    for node in nodes:
        name = node.name or f"{node.op_type}_{node.outputs[0].name}"
        yield f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1


def _place(name: str) -> tuple[int, int]:
    """Where in a table to begin, and the step to go on with."""
    number = crc32(name.encode())
    return number % LENGTH, 1 + number // LENGTH % (LENGTH - 1)


def _initializer(graph: ir.Graph, name: str, array: NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(array, name=name)
    shape, kind = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
    value = ir.Value(name=name, shape=shape, type=kind, const_value=tensor)
    graph.register_initializer(value)
    return value


@dataclass
class _Noise:
    """The nodes that take the place of one random operator.

    Attributes:
        name: the beginning of their names.
        table: the numbers to read.
        start: where the batch begins to read.
        place: where the operator begins to read, and its step.
        opset: of the model.
        nodes: the nodes made so far.
    """

    name: str
    table: ir.Value
    start: ir.Value
    place: tuple[int, int]
    opset: int
    nodes: list[ir.Node] = field(default_factory=list)

    def op(self, op_type: str, *inputs: ir.Value, domain: str = "", **attributes: int) -> ir.Value:
        """Add a node and return its output."""
        return self._add(ir.node(op_type, inputs, attributes, domain=domain))

    def constant(self, number: object, kind: type[np.generic] = np.int64) -> ir.Value:
        """Add a constant."""
        return self._add(ir.node("Constant", [], {"value": ir.tensor(np.array(number, kind))}))

    def _add(self, node: ir.Node) -> ir.Value:
        node.name = f"{self.name}/{len(self.nodes)}"
        node.outputs[0].name = f"{node.name}/output"
        self.nodes.append(node)
        return node.outputs[0]

    def numbers(self, shape: ir.Value, count: ir.Value) -> ir.Value:
        """Read ``count`` numbers in a shape: those at ``(start + place + i * step) mod length``."""
        place, step = map(self.constant, self.place)
        length = self.constant(LENGTH)
        index = self.op("Range", self.constant(0), count, self.constant(1), domain=ONNX_RUNTIME)
        index = self.op("Add", self.op("Mul", index, step), self.op("Add", self.start, place))
        turns = self.op("Mul", self.op("Div", index, length), length)  # Mod exists only since opset 10
        read = self.op("Gather", self.table, self.op("Sub", index, turns))
        if self.opset < 14:  # there, a size of 0 cannot be told
            return self.op("Reshape", read, shape)
        return self.op("Reshape", read, shape, allowzero=1)

    def like(self, value: ir.Value) -> ir.Value:
        """Read as many numbers as ``value`` has, in its shape."""
        return self.numbers(self.op("Shape", value), self.op("Size", value))


def _take_over(node: ir.Node, nodes: Sequence[ir.Node]) -> None:
    """Replace a node by ``nodes``, the last of which give its outputs."""
    old, new = list(node.outputs), [each.outputs[0] for each in nodes[-len(node.outputs) :]]
    assert node.graph is not None
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], nodes, old, new)


# --- random operators -----------------------------------------------------------------------------


def _spread(node: ir.Node, noise: _Noise, scale: float, shift: float) -> None:
    """``scale * noise + shift``, in the shape and the type that the operator asks for."""
    if node.inputs and node.inputs[0] is not None:
        read = noise.like(node.inputs[0])
    else:
        shape = node.attributes["shape"].as_ints()
        read = noise.numbers(noise.constant(shape), noise.constant(math.prod(shape)))
    scaled = noise.op("Mul", read, noise.constant(scale, np.float32))
    _cast(node, noise, noise.op("Add", scaled, noise.constant(shift, np.float32)), ir.DataType.FLOAT)


def _scale_normal(node: ir.Node, noise: _Noise) -> None:
    _spread(node, noise, _number(node, "scale", 1.0), _number(node, "mean", 0.0))


def _scale_uniform(node: ir.Node, noise: _Noise) -> None:
    low, high = _number(node, "low", 0.0), _number(node, "high", 1.0)
    _spread(node, noise, high - low, low)


def _toss(node: ir.Node, noise: _Noise) -> None:
    """Bernoulli: true where a uniform number is below the probability."""
    chance = node.inputs[0]
    assert chance is not None
    known = noise.op("Cast", chance, to=ir.DataType.FLOAT)
    _cast(node, noise, noise.op("Less", noise.like(chance), known), ir.DataType.FLOAT)


def _choose(node: ir.Node, noise: _Noise) -> None:
    """Multinomial, by the Gumbel-max trick: the largest sum of log-probability and Gumbel noise is chosen."""
    scores = node.inputs[0]
    assert scores is not None
    count = node.attributes["sample_size"].as_int() if "sample_size" in node.attributes else 1
    rows = noise.op("Reshape", noise.op("Cast", scores, to=ir.DataType.FLOAT), noise.constant([0, 1, -1]))
    rows = noise.op("Tile", rows, noise.constant([1, count, 1]))
    best = noise.op("ArgMax", noise.op("Add", rows, noise.like(rows)), axis=2, keepdims=0)
    _cast(node, noise, best, ir.DataType.INT32)


def _drop(node: ir.Node, noise: _Noise) -> None:
    """Dropout in training: what is kept is divided by the share of what is kept."""
    data, ratio, training = node.inputs
    assert data is not None
    assert training is not None
    given = noise.constant(0.5, np.float32) if ratio is None else ratio
    chance = noise.op("Cast", given, to=ir.DataType.FLOAT)
    lost = noise.op("And", noise.op("Less", noise.like(data), chance), training)
    share = noise.op("Sub", noise.constant(1, np.float32), chance)
    scale = noise.op("Where", training, share, noise.constant(1, np.float32))
    grown = noise.op("Div", noise.op("Cast", data, to=ir.DataType.FLOAT), scale)
    kept = noise.op("Where", lost, noise.constant(0, np.float32), grown)
    _cast(node, noise, kept, ir.DataType.FLOAT)
    if len(node.outputs) > 1:
        noise.op("Not", lost)


def _number(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _cast(node: ir.Node, noise: _Noise, value: ir.Value, default: ir.DataType) -> None:
    """Convert to the type that the attribute dtype names; without one, to that of a float input."""
    given = node.inputs[0].dtype if node.inputs and node.inputs[0] is not None else None
    if "dtype" in node.attributes:
        kind = node.attributes["dtype"].as_int()
    elif node.op_type != "Multinomial" and given is not None and given.is_floating_point():
        kind = given
    else:
        kind = default
    noise.op("Cast", value, to=int(kind))


@dataclass(frozen=True)
class _Law:
    """How a random operator draws: the table it reads, and what makes its output of the numbers."""

    table: Callable[[], Doubles]
    replace: Callable[[ir.Node, _Noise], None]


def _uniform() -> Doubles:
    """The middles of equal parts of (0, 1), in random order."""
    return np.random.default_rng(0).permutation((np.arange(LENGTH) + 0.5) / LENGTH)


def _normal() -> Doubles:
    return np.random.default_rng(0).standard_normal(LENGTH)


def _gumbel() -> Doubles:
    return np.random.default_rng(0).gumbel(size=LENGTH)


_LAWS: Mapping[str, _Law] = {
    "RandomNormal": _Law(_normal, _scale_normal),
    "RandomNormalLike": _Law(_normal, _scale_normal),
    "RandomUniform": _Law(_uniform, _scale_uniform),
    "RandomUniformLike": _Law(_uniform, _scale_uniform),
    "Bernoulli": _Law(_uniform, _toss),
    "Multinomial": _Law(_gumbel, _choose),
    "Dropout": _Law(_uniform, _drop),
}
