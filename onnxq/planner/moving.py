"""Find float tensors that are better quantized before the links that move their values than after these.

    x -> Slice, Concat(slice, x) -> Q -> Conv      =>      x -> Q -> Slice, Concat(slice, x) -> Conv

The values are the same, and integers are moved in a quarter of the time. It costs nothing where no more
elements are quantized than otherwise, and where nobody needs the moved values in float. Raw inputs are joined
and moved in float, because their channels may have to be scaled first, if their sizes are unlike.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Set

import onnx_ir as ir

from onnxq.graph.nodes import int_attribute, is_op
from onnxq.graph.operators import data_values
from onnxq.planner.context import PlanningContext, integer_inputs
from onnxq.targets.target import FloatInputs, Role

_SAME_COUNT = (
    *("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "DepthToSpace", "SpaceToDepth"),
    *("Relu", "Clip"),
)
"""Operators whose output has as many elements as their input."""


def quantized_before_moves(
    planned: Collection[ir.Node], integers: Set[ir.Value | None], context: PlanningContext
) -> set[ir.Value]:
    """Return the float tensors to quantize before the nodes that move their values.

    Args:
        planned: the nodes to quantize, in graph order.
        integers: the tensors that are in integers anyway.
        context: the planning context.
    """
    edges = {(node, index) for node in planned for index in integer_inputs(node, context)}
    movers = _movers_of_floats(planned, integers, edges, context)
    firm = integers - {value for node in movers for value in node.outputs}
    found = set[ir.Value]()
    for part in _parts(movers):
        made = [value for node in part for value in node.outputs if value.name]
        sources = {v for node in part for v in data_values(node) if v not in made and v not in integers}
        ends = {value: _readers(value) - part for value in made}
        fit = not any(value.is_initializer() or value in context.raw for value in sources)
        fit = fit and all(
            _needs_integers(node, firm, context) for readers in ends.values() for node in readers
        )
        if fit and _as_few(sources, [value for value, readers in ends.items() if readers]):
            found |= sources | set(made)
    return found


def _readers(value: ir.Value) -> set[ir.Node]:
    return {use.node for use in value.uses()}


def _needs_integers(node: ir.Node, firm: Set[ir.Value | None], context: PlanningContext) -> bool:
    """Whether a planned node would read integers even if those moved here were in float."""
    return context.role(node) is Role.ANCHOR or any(value in firm for value in data_values(node))


def _movers_of_floats(
    planned: Iterable[ir.Node],
    integers: Set[ir.Value | None],
    edges: Set[tuple[ir.Node, int]],
    context: PlanningContext,
) -> list[ir.Node]:
    """The links that move float values, and whose outputs are read in integers only."""
    floats, found = set[ir.Value](), []
    for node in planned:
        sources = [value for value in data_values(node) if value in floats or value not in integers]
        if not sources or context.target.rules[node.op_type].float_inputs not in _MOVED or _is_choppy(node):
            continue
        if all(_stays_integer(value, edges) for value in node.outputs if value.name):
            found.append(node)
            floats.update(node.outputs)
    return found


SHORTEST_RUN = 4
"""Least number of neighbouring elements that a Concat takes from an input, on the average.

An integer Concat copies run by run. Runs of 1, 2, 4, 8 elements take 6.5, 1.1, 1.1, 0.8 times as long as in
float (ONNX Runtime 1.31, 200,000 elements, one thread).
"""


def _is_choppy(node: ir.Node) -> bool:
    """Whether the node is a Concat of shorter runs, on the average."""
    if not is_op(node, "Concat"):
        return False
    axis = int_attribute(node, "axis", 0)
    runs = [value.shape[axis:] if value.shape is not None else () for value in data_values(node)]
    lengths = [math.prod(n if isinstance(n, int) else SHORTEST_RUN for n in run) for run in runs]
    return sum(lengths) < SHORTEST_RUN * len(lengths)


_MOVED = (FloatInputs.MOVED, FloatInputs.ANY)


def _stays_integer(value: ir.Value, edges: Set[tuple[ir.Node, int]]) -> bool:
    uses = tuple(value.uses())
    return bool(uses) and not value.is_graph_output() and all((use.node, use.idx) in edges for use in uses)


def _parts(nodes: Iterable[ir.Node]) -> Iterator[set[ir.Node]]:
    """Yield the sets of nodes that are connected by tensors, among ``nodes``."""
    left = dict.fromkeys(nodes)
    while left:
        part, waiting = set[ir.Node](), [next(iter(left))]
        while waiting:
            node = waiting.pop()
            if node in left:
                del left[node]
                part.add(node)
                tensors = (*data_values(node), *node.outputs)
                waiting += [use.node for value in tensors for use in value.uses()]
                waiting += [maker for value in data_values(node) if (maker := value.producer()) is not None]
        yield part


def _as_few(sources: Iterable[ir.Value], ends: Iterable[ir.Value]) -> bool:
    """Whether ``sources`` certainly have no more elements than ``ends``."""
    before, after = (_elements(values) for values in (sources, ends))
    return None not in (*before, *after) and all(before[key] <= after[key] for key in before)


def _elements(values: Iterable[ir.Value]) -> Counter[tuple[str, ...] | None]:
    """Count the elements of all values together: names of unknown sizes -> the factor of their product.

    The key is None where a size has no name.
    """
    total = Counter[tuple[str, ...] | None]()
    for value in values:
        while (
            (node := value.producer()) is not None
            and is_op(node, *_SAME_COUNT)
            and node.inputs[0] is not None
        ):
            value = node.inputs[0]
        sizes = [None] if value.shape is None else list(value.shape)
        names = [None if isinstance(s, int) else getattr(s, "value", None) for s in sizes]
        unknown = [name for size, name in zip(sizes, names, strict=True) if not isinstance(size, int)]
        key = None if None in unknown else tuple(sorted(name for name in unknown if name is not None))
        total[key] += math.prod(size for size in sizes if isinstance(size, int))
    return total
