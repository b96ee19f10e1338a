"""Measure the smallest and the largest value of every float tensor of a model, in the bodies of If, Loop and
Scan too.

Tensors of the main graph are read one sample at a time. Tensors of a body cannot be read from outside. So a
copy of the model computes three numbers of each: ``[min x, min -x, min |x| of x != 0]``. A branch that was
not taken, or a loop that did not run, gives infinity for all three.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import processors, run_batch
from calibrators.data.samples import Sample
from calibrators.session import open_session

Array = NDArray[np.generic]

_UNKNOWN = np.full(3, np.inf, np.float32)
"""The three numbers of a tensor that was not computed."""

_AXES_ARE_INPUT = 18
"""The opset in which the axes of ReduceMin became an input."""

_LOGICAL = ("Equal", "Not", "Or")
"""Operators that give truth values."""

TAP = "onnxq_extremes"
"""The names of all tensors that are added begin with this."""


@dataclass(frozen=True)
class Extremes:
    """The finite values of a tensor over all samples.

    Attributes:
        low: the smallest value.
        high: the largest value.
        least: the smallest magnitude of all values other than zero; infinite if all are zero, or if it was
            not asked for.
    """

    low: float
    high: float
    least: float

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high, 0.0)

    def merge(self, other: Extremes) -> Extremes:
        """Return the extremes of both."""
        return Extremes(min(self.low, other.low), max(self.high, other.high), min(self.least, other.least))


def measure_extremes(
    model: ir.Model,
    samples: Iterable[Sample],
    least_of: Collection[str] = (),
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
) -> dict[str, Extremes]:
    """Run ``model`` on ``samples``, and return the extremes of each float32 tensor that held finite values.

    Infinities and NaN are left out. Tensors that no sample reached are missing.

    Args:
        model: the model; it is not changed.
        samples: read once; one is in memory at a time, with all tensors of the main graph.
        least_of: names of the tensors whose smallest magnitude is needed too, which takes time. Tensors of
            bodies always have it.
        providers: execution providers, the preferred one first.
        threads: the number of threads; 0 uses every processor.

    Raises:
        CalibrationError: the model does not load, or does not take a sample.
    """
    tapped, taps = _with_taps(model)
    names = [value.name for value in _tensors(tapped.graph) if value.name and value.name not in taps]
    session = open_session(tapped, outputs=[*names, *taps], providers=providers, threads=threads)
    found: dict[str, Extremes] = {}
    with ThreadPoolExecutor(threads or processors()) as pool:
        for sample in samples:
            arrays = run_batch(session, [*names, *taps], sample)
            each = pool.map(partial(_of_array, least_of), names, arrays[: len(names)])
            seen = dict(zip(names, each, strict=True))
            inner = zip(taps.values(), map(_of_tap, arrays[len(names) :]), strict=True)
            for name, extremes in (*seen.items(), *inner):
                if extremes is not None:
                    found[name] = found[name].merge(extremes) if name in found else extremes
    return found


def _tensors(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the computed float32 tensors of one graph, and its inputs."""
    values = (*graph.inputs, *(value for node in graph for value in node.outputs))
    return (value for value in values if value.name and _is_float(value))


def _is_float(value: ir.Value) -> bool:
    return isinstance(value.type, ir.TensorType) and value.dtype == ir.DataType.FLOAT


def _of_array(least_of: Collection[str], name: str, array: Array) -> Extremes | None:
    """Return the extremes of the finite values of a tensor; None if there are none."""
    values = np.asarray(array, np.float32)
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(low + high):
        values = values[np.isfinite(values)]
        return _of_array(least_of, name, values)
    if name not in least_of:
        return Extremes(low, high, np.inf)
    sizes = np.abs(values)
    least = sizes.min()
    if least == 0:
        least = sizes.min(where=sizes > 0, initial=np.inf)
    return Extremes(low, high, float(least))


def _of_tap(array: Array) -> Extremes | None:
    low, negated, least = (float(number) for number in array)
    return Extremes(low, -negated, least) if np.isfinite([low, negated]).all() else None


# --- bodies -----------------------------------------------------------------------------------------


def _with_taps(model: ir.Model) -> tuple[ir.Model, Mapping[str, str]]:
    """Copy the model and expose the tensors of its bodies.

    Returns:
        The copy, and its new tensors (in the main graph) -> the tensors of bodies that they tell of.
    """
    if not any(graph is not model.graph for graph in model.graphs()):
        return model, {}
    copy = model.clone()
    tapper = _Tapper(copy)
    exposed = [pair for node in list(copy.graph) for pair in tapper.expose(node)]
    return copy, {str(value.name): name for name, value in exposed}


_Taps = list[tuple[str, ir.Value]]
"""Names of tensors, each with a value of the three numbers, ``[3]``."""


class _Tapper:
    """Adds the three numbers of each tensor of a body to the outputs of the node with that body."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._count = 0
        self._unknown = self._constant(_UNKNOWN)
        self._rows = self._constant(_UNKNOWN[None])
        self._zero = self._constant(np.zeros((), np.float32))
        self._infinite = self._constant(np.full((), np.inf, np.float32))
        self._vector = self._constant(np.array([-1], np.int64))
        self._first = self._constant(np.array([0], np.int64))

    def expose(self, node: ir.Node) -> _Taps:
        """Make the tensors of the bodies of ``node`` known in its graph; nothing if it has no body."""
        graphs = {
            name: attribute.as_graph()
            for name, attribute in node.attributes.items()
            if attribute.type == ir.AttributeType.GRAPH
        }
        found = {name: self._inside(graph) for name, graph in graphs.items()}
        if node.op_type == "If":
            return self._through_branches(node, graphs, found)
        if node.op_type in ("Loop", "Scan") and "body" in found:
            return self._through_loop(node, graphs["body"], found["body"])
        return []

    def _inside(self, graph: ir.Graph) -> _Taps:
        values = [value for value in _tensors(graph) if value.producer() is not None]
        inner = [pair for node in list(graph) for pair in self.expose(node)]
        return [*inner, *((str(value.name), self._tap(value, graph)) for value in values)]

    def _tap(self, value: ir.Value, graph: ir.Graph) -> ir.Value:
        """Compute the three numbers at the end of ``graph``."""
        flat = self._add(graph, "Reshape", [value, self._vector])
        bad = self._add(graph, "Not", [self._add(graph, "Equal", [flat, flat])])
        sizes = self._add(graph, "Abs", [flat])
        bad = self._add(graph, "Or", [bad, self._add(graph, "Equal", [sizes, self._infinite])])
        lows = self._add(graph, "Where", [bad, self._infinite, flat])
        highs = self._add(graph, "Where", [bad, self._infinite, self._add(graph, "Neg", [flat])])
        none = self._add(graph, "Or", [bad, self._add(graph, "Equal", [flat, self._zero])])
        leasts = self._add(graph, "Where", [none, self._infinite, sizes])
        each = [self._least(graph, part) for part in (lows, highs, leasts)]
        return self._add(graph, "Concat", each, {"axis": 0})

    def _least(self, graph: ir.Graph, values: ir.Value) -> ir.Value:
        """Return the smallest of a vector, ``[1]``; infinity is added, as the vector may be empty."""
        one = self._add(graph, "Reshape", [self._infinite, self._vector])
        both = self._add(graph, "Concat", [values, one], {"axis": 0})
        return self._add(graph, "ReduceMin", [both], {"keepdims": 1})

    def _through_branches(
        self, node: ir.Node, graphs: Mapping[str, ir.Graph], found: Mapping[str, _Taps]
    ) -> _Taps:
        """Give the numbers of one branch, and infinity from the other branches."""
        exposed: _Taps = []
        for taken, taps in found.items():
            for name, value in taps:
                for other, graph in graphs.items():
                    here = value if other == taken else self._add(graph, "Identity", [self._unknown])
                    graph.outputs.append(here)
                exposed.append((name, self._output(node)))
        return exposed

    def _through_loop(self, node: ir.Node, body: ir.Graph, taps: _Taps) -> _Taps:
        """Stack the numbers of all iterations, and take the least of each."""
        graph, exposed = node.graph, _Taps()
        assert graph is not None
        for name, value in taps:
            body.outputs.append(value)
            for lists in ("scan_output_axes", "scan_output_directions"):
                if lists in node.attributes:
                    longer = [*node.attributes[lists].as_ints(), 0]
                    node.attributes[lists] = ir.AttrInt64s(lists, longer)
            exposed.append((name, self._output(node)))
        return [(name, self._least_rows(graph, node, value)) for name, value in exposed]

    def _least_rows(self, graph: ir.Graph, node: ir.Node, stacked: ir.Value) -> ir.Value:
        both = self._node("Concat", [stacked, self._rows], {"axis": 0})
        if self._model.graph.opset_imports[""] < _AXES_ARE_INPUT:
            least = self._node("ReduceMin", [both.outputs[0]], {"axes": [0], "keepdims": 0})
        else:
            least = self._node("ReduceMin", [both.outputs[0], self._first], {"keepdims": 0})
        graph.insert_after(node, [both, least])
        return least.outputs[0]

    def _output(self, node: ir.Node) -> ir.Value:
        node.resize_outputs(len(node.outputs) + 1)
        value = node.outputs[-1]
        value.name, value.type = self._name(), ir.TensorType(ir.DataType.FLOAT)
        return value

    def _add(
        self,
        graph: ir.Graph,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: Mapping[str, int] | None = None,
    ) -> ir.Value:
        node = self._node(op_type, inputs, attributes or {})
        graph.append(node)
        return node.outputs[0]

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Mapping[str, int | list[int]]
    ) -> ir.Node:
        node = ir.node(op_type, inputs, attributes=attributes, name=self._name())
        node.outputs[0].name = self._name()
        node.outputs[0].type = ir.TensorType(ir.DataType.BOOL if op_type in _LOGICAL else ir.DataType.FLOAT)
        return node

    def _constant(self, array: Array) -> ir.Value:
        name = self._name()
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.shape = ir.Shape(array.shape)
        self._model.graph.register_initializer(value)
        return value

    def _name(self) -> str:
        self._count += 1
        return f"{TAP}/{self._count}"
