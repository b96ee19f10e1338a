"""Group the tensors that share scale and zero point.

Shared parameters save the runtime a rescaling: for example the inputs and the output of a Concat, both sides
of a MaxPool, or a tensor and its transpose. Quantized tensors share parameters too where only operators lie
between them that the target moves Q and DQ across.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from calibrators.data.caches import find_caches
from onnxq.core.plan import Group, QuantSpec
from onnxq.graph.nodes import is_op, name_of
from onnxq.graph.operators import (
    MOVING,
    Range,
    attribute_value,
    clip_range,
    data_values,
    useful_range,
)
from onnxq.planner.averaging import averaged_elements
from onnxq.planner.context import (
    PlanningContext,
    fused_output,
)
from onnxq.planner.edges import Edge, Key
from onnxq.targets.target import Storage

UNLIMITED: Range = (-math.inf, math.inf)

_SELECTING = (*sorted(MOVING), "Concat", "MaxPool", "ReduceMax", "ReduceMin")
"""Operators whose results are values of their operands; Resize may be another one."""


# --- Who shares parameters? -------------------------------------------------------------------


def find_groups(
    edges: Sequence[Edge], planned: Sequence[ir.Node], context: PlanningContext
) -> dict[Key, Group]:
    """Find the group of each tensor.

    Args:
        edges: all quantized edges.
        planned: the nodes to quantize, in graph order.
        context: the planning context.
    """
    values = {edge.key: edge.value for edge in edges}
    values |= {edge.source: edge.value for edge in edges if edge.source is not None}
    sources = _ties(planned, {(edge.node, edge.index) for edge in edges}, context)
    sources = _with_caches(sources, set(values), context)
    ties, parts = dict(sources), set[Key]()
    for spec in context.activations:
        found = list(shared_params([value for (_, own), value in values.items() if own == spec], context))
        ties = _bridged(ties, found, spec)
        parts |= {(name_of(bridge.part), spec) for bridge in found if bridge.part is not None}
    averaged = averaged_elements(context.graph)
    taken: set[str] = set()
    groups: dict[Key, Group] = {}
    members = _members(values, ties)
    for root in sorted(members, key=lambda root: root[1] in context.own_activations.values()):
        keys = members[root]
        observe = dict.fromkeys(_root(key, sources) for key in keys if key not in parts)
        group = _group(root, [values[key] for key in keys], {k: values.get(k) for k in observe}, context)
        name = root[0] if root[0] not in taken else _unique(root)
        group = replace(group, name=name, averaging_window=max(averaged.get(values[key], 1) for key in keys))
        taken.add(name)
        groups |= dict.fromkeys(keys, group)
    return groups


def _members(keys: Iterable[Key], ties: Mapping[Key, Key]) -> dict[Key, list[Key]]:
    """List, for the root of each group, all the keys that share its parameters."""
    members: dict[Key, list[Key]] = {}
    for key in keys:
        members.setdefault(_root(key, ties), []).append(key)
    return members


def _unique(key: Key) -> str:
    name, spec = key
    blocks = "" if spec.block_size is None else f"/{spec.block_size}"
    bits = f"-{spec.reduce_bits}" if spec.reduce_bits else ""
    return f"{name}/{spec.dtype.name.lower()}{bits}/{spec.axis}{blocks}"


def _bridged(ties: Mapping[Key, Key], found: Iterable[SharedParams], spec: QuantSpec) -> dict[Key, Key]:
    """Add the pairs of ``found``, which have the format ``spec``, to ``ties``.

    The tensor that holds the most values becomes the root.
    """
    result = dict(ties)
    for bridge in found:
        pair = (bridge.above, bridge.below)
        above, below = (_root((name_of(value), spec), result) for value in pair)
        child, parent = (above, below) if bridge.whole is bridge.below else (below, above)
        if child != parent:
            result[child] = parent
    return result


Uses = Set[tuple[ir.Node | None, int]]
"""The quantized edges, as reader and input index."""


def _ties(planned: Iterable[ir.Node], uses: Uses, context: PlanningContext) -> dict[Key, Key]:
    """Map tensors to the tensor whose parameters they take; each chain ends at the root of a group."""
    ties: dict[Key, Key] = {}
    for node in planned:
        rule, spec = context.target.rules[node.op_type], context.activation_of(node)
        if rule.same_params and node.inputs[0] is not None:
            source = (name_of(node.inputs[0]), spec)
            ties |= {(name_of(out), spec): source for out in node.outputs if out.name}
        if rule.inputs_follow:
            output = fused_output(node.outputs[0], rule, context)
            goal = (name_of(output), spec)
            followers = _followers(node, output, uses, context)
            ties |= {_root((name_of(value), spec), ties): goal for value in followers}
    return ties


def _with_caches(ties: Mapping[Key, Key], keys: Set[Key], context: PlanningContext) -> dict[Key, Key]:
    """Add ties of caches: what is read, what is appended and what is given back have one grid.

    An integer that goes in comes out unchanged, however many steps a decoder makes. The output holds all of
    them.
    """
    result = dict(ties)
    for cache in find_caches(context.graph):
        for spec in context.activations:
            goal = _root((name_of(cache.present), spec), result)
            held = [(name_of(value), spec) for value in cache.values if value is not None]
            parts = [key for key in held if key in keys]
            for root in (_root(key, result) for key in parts if goal in keys):
                if root != goal:
                    result[root] = goal
    return result


def _root(key: Key, ties: Mapping[Key, Key]) -> Key:
    while key in ties:
        key = ties[key]
    return key


def _followers(node: ir.Node, output: ir.Value, uses: Uses, context: PlanningContext) -> Iterator[ir.Value]:
    """Yield the inputs that lose nothing when they take the parameters of ``node``'s output.

    Nothing else reads their integers, so a finer grid of their own would be lost here anyway. A Relu or Clip
    before them still fuses, because the output's range has the same limits.
    """
    for value in dict.fromkeys(node.inputs):
        if value is None or value.is_initializer() or not _is_private(value, node, uses, context):
            continue
        if _fixed_range(value, context) is not None:
            continue
        if limits(value) in (UNLIMITED, limits(output)):
            yield value


def _is_private(value: ir.Value, reader: ir.Node, uses: Uses, context: PlanningContext) -> bool:
    """Whether only ``reader`` reads the integers of ``value`` and of those that share its parameters."""
    if value.is_graph_output() or not _leads_to(value, reader, uses, context):
        return False
    producer = value.producer()
    rule = context.rule(producer) if producer is not None else None
    if producer is None or rule is None or not rule.same_params:
        return True
    source = producer.inputs[0]
    return len(producer.outputs) == 1 and source is not None and _is_private(source, reader, uses, context)


def _leads_to(value: ir.Value, reader: ir.Node, uses: Uses, context: PlanningContext) -> bool:
    """Whether all integers of ``value`` end in ``reader``, perhaps after operators that only move them."""
    readers = {use.node for use in value.uses() if (use.node, use.idx) in uses} - {reader}
    rules = [context.rule(node) for node in readers]
    ends = [out for node in readers for out in node.outputs]
    return all(rule is not None and rule.same_params for rule in rules) and all(
        not out.is_graph_output() and _leads_to(out, reader, uses, context) for out in ends
    )


def limits(value: ir.Value) -> Range:
    """The range that ``value`` cannot exceed because of Relu and Clip before it.

    There may be operators in between that only move values, join them, or select some.
    """
    producer = value.producer()
    if producer is None:
        return UNLIMITED
    found = clip_range(producer)
    if found is None and not _selects(producer):
        return UNLIMITED
    ranges = [limits(source) for source in data_values(producer)] or [UNLIMITED]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return (low, high) if found is None else (_clipped(low, found), _clipped(high, found))


def _selects(node: ir.Node) -> bool:
    """Whether all results of ``node`` are values of its operands."""
    if is_op(node, "Resize"):
        places = attribute_value(node, "coordinate_transformation_mode")
        return bool(attribute_value(node, "mode") == "nearest" and places != "tf_crop_and_resize")
    return is_op(node, *_SELECTING)


def _clipped(end: float, span: Range) -> float:
    return min(max(end, span[0]), span[1])


def _fixed_range(value: ir.Value, context: PlanningContext) -> Range | None:
    producer = value.producer()
    rule = context.rule(producer) if producer is not None else None
    return rule.output_range if rule is not None else None


def _group(
    root: Key, values: Sequence[ir.Value], observe: Mapping[Key, ir.Value | None], context: PlanningContext
) -> Group:
    """Make a group of ``values``. Its range comes from the tensors in ``observe`` (None: not quantized)."""
    firsts = [value for value in observe.values() if value is not None]
    blocks = context.target.blocks
    constant = any(value.is_initializer() for value in firsts)
    fixed = next((_fixed_range(value, context) for value in firsts), None)
    bounds = [_bounds(value) if value is not None else UNLIMITED for value in observe.values()]
    return Group(
        name=root[0],
        spec=root[1],
        tensors=tuple(name_of(value) for value in values),
        observed_tensors=() if constant or fixed is not None else tuple(name for name, _ in observe),
        bounds=UNLIMITED if constant else (min(low for low, _ in bounds), max(high for _, high in bounds)),
        flat=None if constant else _flat(list(observe.values())),
        fixed=None if fixed is None else _without_last_step(fixed, root[1]),
        constant=constant,
        cast_to=context.target.weight_cast.get(root[1].dtype) if root[1].block_size is None else None,
        copied=root[1].block_size is not None and blocks is not None and blocks.unshared,
        stored_as_float=constant and context.target.storage is Storage.REALS,
    )


def _flat(values: Sequence[ir.Value | None]) -> str | None:
    """The function that the readers of all values compute, if it is the same one."""
    functions = {_flat_function(value) if value is not None else None for value in values}
    return functions.pop() if len(functions) == 1 else None


def _flat_function(value: ir.Value) -> str | None:
    """Return the function that all readers of ``value`` compute, if it is flat for very negative values.

        x → Sigmoid → s,  Mul(x, s)      SiLU
        x → Gelu                         (also in the domain of ONNX Runtime)

    It is a key of `calibrators.methods.flat_end.FUNCTIONS`.
    """
    readers = [use.node for use in value.uses()]
    if not readers or value.is_graph_output():
        return None
    if all(node.op_type == "Gelu" for node in readers):
        return "gelu"
    gates = [node for node in readers if is_op(node, "Sigmoid")]
    products = [node for node in readers if is_op(node, "Mul")]
    if len(gates) != 1 or len(products) != 1 or len(readers) != 2:
        return None
    gate = gates[0].outputs[0]
    only_there = not gate.is_graph_output() and [use.node for use in gate.uses()] == products
    return "silu" if only_there and {value, gate} == set(products[0].inputs) else None


def _without_last_step(span: Range, spec: QuantSpec) -> Range:
    """Convert ``span``, whose high end is one step above the last level, to the range of the levels."""
    qmin, qmax = spec.limits
    low, high = span
    return low, high - (high - low) / (qmax - qmin + 1)


def _bounds(value: ir.Value) -> Range:
    """The range that the producer can give, or else that consumers can tell apart, extended to zero."""
    low, high = limits(value)
    if (low, high) == UNLIMITED and value.uses() and not value.is_graph_output():
        ranges = [useful_range(use.node) for use in value.uses()]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return min(low, 0.0), max(high, 0.0)


@dataclass(frozen=True)
class SharedParams:
    """Two quantized tensors that share parameters.

    Attributes:
        above: the earlier tensor in the graph.
        below: the tensor that is computed from ``above``.
        whole: the one of them that holds all the values of the other; None if neither does.
    """

    above: ir.Value
    below: ir.Value
    whole: ir.Value | None

    @property
    def part(self) -> ir.Value | None:
        """The tensor whose values are all in the other one; None if there is none."""
        return {self.above: self.below, self.below: self.above}.get(self.whole) if self.whole else None


def shared_params(quantized: Iterable[ir.Value], context: PlanningContext) -> Iterator[SharedParams]:
    """Yield each pair of ``quantized`` tensors with only transparent operators between them, and no third."""
    known = frozenset(quantized)
    for below in dict.fromkeys(quantized):
        for above, steps in _sources(below, known, context):
            whole = below if all(steps) else above if not any(steps) else None
            yield SharedParams(above, below, whole)


def _sources(
    value: ir.Value, quantized: Collection[ir.Value], context: PlanningContext
) -> Iterator[tuple[ir.Value, tuple[bool, ...]]]:
    """Yield the nearest quantized tensors before ``value``, and for each step whether it is a Concat."""
    node = value.producer()
    if node is None or not is_op(node, *(context.target.transparent - context.target.no_shared_params)):
        return
    joins = node.op_type == "Concat"
    for source in data_values(node):
        if source in quantized:
            yield source, (joins,)
        else:
            for found, steps in _sources(source, quantized, context):
                yield found, (*steps, joins)
