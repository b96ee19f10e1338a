"""The graph of a model as the report draws it: nodes with the type that they run in, and who reads whom.

A large graph is drawn as groups of nodes: those whose names begin alike, or else stretches of the graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.core.plan import QuantPlan
from onnxq.graph.half_precision.narrow import Narrowing
from onnxq.graph.nodes import all_nodes, bodies, name_of
from onnxq.planner.eligibility import computes_reals

MOST_DRAWN = 600
"""The largest number of nodes that are drawn one by one; more would make the page slow."""

MOST_GROUPS = 300
"""The largest number of groups that stand for them."""

FEWEST_GROUPS = 16
"""With fewer, names tell nothing about the structure, and stretches of the graph are drawn."""

CARRIED = "as its neighbours"
OTHER = "no float numbers"


@dataclass(frozen=True)
class OutlineNode:
    """A node, or a group of nodes.

    Attributes:
        label: what is written in it.
        kind: the type that it runs in; of a group the most frequent one.
        members: (name, operator, type) of each node in it.
        reads: the numbers of the nodes or groups that it reads from, in increasing order.
    """

    label: str
    kind: str
    members: tuple[tuple[str, str, str], ...]
    reads: tuple[int, ...]


@dataclass(frozen=True)
class Outline:
    """The graph to draw.

    Attributes:
        nodes: the nodes or groups, in graph order.
        count: the number of nodes in them.
        hidden: the number of nodes that compute no float numbers, such as shapes, and are left out.
    """

    nodes: tuple[OutlineNode, ...]
    count: int
    hidden: int = 0

    @property
    def grouped(self) -> bool:
        """Whether groups are drawn in place of nodes."""
        return len(self.nodes) < self.count


def outline(reference: ir.Model, plan: QuantPlan, narrowing: Narrowing | None) -> Outline:
    """Make the outline of the graph. Bodies of control flow stand before their operator, as if it read them.

    Args:
        reference: the float model that the plan is for.
        plan: the plan.
        narrowing: what is written in half precision; None: nothing.
    """
    kinds: dict[ir.Node, str] = {}
    given: dict[ir.Value, ir.Value] = {}
    for node in all_nodes(reference):
        fuses = bool(plan.points) and node.graph is reference.graph
        kinds[node] = _kind(node, plan, narrowing) or _unplanned(node, kinds if fuses else None)
        given |= {inner: given.get(outer, outer) for inner, outer in _entries(node)}
    nodes = [node for node, kind in kinds.items() if kind != OTHER] or list(kinds)
    keys = _keys([name_of(node) for node in nodes])
    places = {key: place for place, key in enumerate(dict.fromkeys(keys))}
    place_of = {node: places[key] for node, key in zip(nodes, keys, strict=True)}
    members: list[list[tuple[str, str, str]]] = [[] for _ in places]
    reads: list[set[int]] = [set() for _ in places]
    for node in nodes:
        here = place_of[node]
        members[here].append((name_of(node), node.op_type, kinds[node]))
        reads[here] |= {place_of[maker] for maker in _makers(node, given) if maker in place_of} - {here}
    made = (_made(key, members[i], reads[i]) for key, i in places.items())
    return Outline(tuple(made), len(nodes), len(kinds) - len(nodes))


def _makers(node: ir.Node, given: Mapping[ir.Value, ir.Value]) -> Iterator[ir.Node]:
    """Yield the nodes that ``node`` reads from: for control flow also the last ones of its bodies."""
    results = [value for body in bodies(node) for value in body.outputs]
    for value in (*node.inputs, *results):
        maker = None if value is None else given.get(value, value).producer()
        if maker is not None:
            yield maker


def _entries(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Yield inputs of bodies with what they hold at first: the input of Loop or Scan in the same place."""
    for body in bodies(node):
        yield from ((a, b) for a, b in zip(body.inputs, node.inputs, strict=False) if b is not None)


def _made(key: str, members: Sequence[tuple[str, str, str]], reads: set[int]) -> OutlineNode:
    kinds = Counter(kind for _, _, kind in members)
    telling = [kind for kind, _ in kinds.most_common() if kind not in (OTHER, CARRIED)]
    label = members[0][1] if len(members) == 1 else f"{key} ({len(members)})"
    return OutlineNode(label, (telling or list(kinds))[0], tuple(members), tuple(sorted(reads)))


def _kind(node: ir.Node, plan: QuantPlan, narrowing: Narrowing | None) -> str:
    """Say in which type a node runs; empty if it is not planned for itself."""
    name = name_of(node)
    if name in plan.stored_weights:
        return _narrow(plan.stored_weights[name].dtype)
    if name in plan.integer_nodes:
        dtype = plan.activation_types.get(name)
        return "int8" if dtype is None else _narrow(dtype)
    if name in plan.passthrough_nodes:
        return CARRIED
    if name not in plan.float_nodes:
        return ""
    half = narrowing is not None and name not in narrowing.float32
    dtype = narrowing.dtype if narrowing is not None and half else ir.DataType.FLOAT
    return dtype.name.lower() if dtype != ir.DataType.FLOAT else "float32"


def _unplanned(node: ir.Node, kinds: Mapping[ir.Node, str] | None) -> str:
    """A node that computes float numbers, but is not planned, is fused with one that it reads from.

    Args:
        node: the node.
        kinds: the types of the nodes before it; None where nothing is fused: in bodies of control flow, and
            without quantized activations, where a plan names only nodes with weights.
    """
    if not computes_reals(node):
        return OTHER
    if kinds is None:
        return "float32"
    makers = (value.producer() for value in node.inputs if value is not None)
    found = (kinds[maker] for maker in makers if maker is not None and maker in kinds)
    return next((kind for kind in found if kind != OTHER), OTHER)


def _narrow(dtype: ir.DataType) -> str:
    return _OTHERS.get(dtype, f"int{dtype.bitwidth}")


_OTHERS: Mapping[ir.DataType, str] = {ir.DataType.FLOAT8E4M3FN: "fp8", ir.DataType.FLOAT16: "float16"}


def _keys(names: Sequence[str]) -> list[str]:
    """Give each node the key of its group; each its own if the graph is small."""
    if len(names) <= MOST_DRAWN:
        return [f"{place} {name}" for place, name in enumerate(names)]
    best: list[str] = []
    for depth in range(1, 8):
        keys = [_prefix(name, depth) for name in names]
        if len(set(keys)) > MOST_GROUPS:
            break
        best = keys
    if len(set(best)) >= FEWEST_GROUPS:
        return best
    return list(_stretches(names))


def _prefix(name: str, depth: int) -> str:
    separator = "/" if "/" in name else "."
    parts = [part for part in name.split(separator) if part]
    return separator.join(parts[: min(depth, max(len(parts) - 1, 1))])


def _stretches(names: Sequence[str]) -> Iterator[str]:
    """Cut the graph into stretches of equal length."""
    length = -(-len(names) // MOST_GROUPS)
    for place in range(len(names)):
        first = place // length * length
        yield f"nodes {first + 1} to {min(first + length, len(names))}"
