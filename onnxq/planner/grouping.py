"""The quantized edges of the planned nodes, and which tensors share parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.graph import constant_value, input_at
from onnxq.operators import INPUT_CHANNELS, SUMMED_AXIS, WEIGHTED, Range, clip_range, useful_range
from onnxq.plan import GRAPH_OUTPUT, BiasPoint, Group, QuantPoint, QuantSpec
from onnxq.planner.averaging import averaged_elements
from onnxq.planner.overrides import block_spec, is_per_tensor, weight_spec
from onnxq.planner.scene import (
    Scene,
    bias_add,
    fused_output,
    integer_inputs,
    integer_outputs,
    sole_reader,
    torn_outputs,
)
from onnxq.planner.sharing import Bridge, bridges
from onnxq.targets.target import BiasStyle, Storage

UNLIMITED: Range = (-math.inf, math.inf)

Key = tuple[str, QuantSpec]
"""A tensor in one number format."""


@dataclass(frozen=True)
class Edge:
    """A quantized edge; ``node`` is None where it leaves the graph."""

    value: ir.Value
    node: ir.Node | None
    index: int
    spec: QuantSpec

    @property
    def key(self) -> Key:
        """The tensor in the edge's number format."""
        return self.value.name or "", self.spec


def find_edges(planned: Iterable[ir.Node], scene: Scene) -> list[Edge]:
    """Every quantized edge once: inputs of planned nodes, and all readers of their integer outputs."""
    edges: dict[tuple[ir.Node | None, int], Edge] = {}
    for node in planned:
        for index in integer_inputs(node, scene):
            edges[node, index] = _edge(node, index, _input_spec(node, index, scene))
        if scene.target.bias is BiasStyle.OWN:
            edges |= {place: _edge(*place, _bias_spec(scene)) for place in _bias_inputs(node, scene)}
    read = {edge.value for edge in edges.values()}
    for node in planned:
        for value in dict.fromkeys((*integer_outputs(node, scene), *torn_outputs(node, read, scene))):
            for reader, index in _readers(value, scene.graph):
                edges.setdefault((reader, index), Edge(value, reader, index, scene.activation))
    return list(edges.values())


def _edge(node: ir.Node, index: int, spec: QuantSpec) -> Edge:
    value = node.inputs[index]
    assert value is not None
    return Edge(value, node, index, spec)


def _readers(value: ir.Value, graph: ir.Graph) -> Iterator[tuple[ir.Node | None, int]]:
    yield from ((use.node, use.idx) for use in value.uses())
    yield from ((None, i) for i, output in enumerate(graph.outputs) if output is value)


def _input_spec(node: ir.Node, index: int, scene: Scene) -> QuantSpec:
    operator, ends = WEIGHTED.get(node.op_type), scene.target.ends if node in scene.ends else None
    if operator is None or index != operator.weight or not _constant(node, index):
        return ends.activation if ends else _activation_spec(node, scene)
    if node in scene.in_blocks:
        blocks = block_spec(node, scene)
        assert blocks is not None
        return replace(blocks, axis=SUMMED_AXIS[node.op_type](node))
    weight = node.inputs[index]
    assert weight is not None
    assert weight.shape is not None
    spec = weight_spec(node, scene) or (ends.weight if ends else scene.formats.weight)
    assert spec is not None
    return replace(
        spec, axis=operator.channel_axis(node, len(weight.shape)) if _per_channel(node, spec, scene) else None
    )


def _activation_spec(node: ir.Node, scene: Scene) -> QuantSpec:
    """The number format of the inputs that ``node`` computes with."""
    rule, operator = scene.target.rules.get(node.op_type), WEIGHTED.get(node.op_type)
    if rule is None:
        return scene.activation
    dynamic = operator is not None and not _constant(node, operator.weight)
    return (rule.dynamic_inputs if dynamic else None) or rule.inputs or scene.activation


def _per_channel(node: ir.Node, spec: QuantSpec, scene: Scene) -> bool:
    types = scene.target.per_channel_types
    allowed = types is None or spec.dtype in types
    return allowed and scene.target.rules[node.op_type].per_channel and not is_per_tensor(node, scene)


def _bias_spec(scene: Scene) -> QuantSpec:
    """Of biases with a scale of their own."""
    assert scene.formats.weight is not None
    return scene.formats.weight


def _constant(node: ir.Node, index: int) -> bool:
    return constant_value(input_at(node, index)) is not None


# --- Who shares parameters? -------------------------------------------------------------------


def find_groups(edges: Sequence[Edge], planned: Sequence[ir.Node], scene: Scene) -> dict[Key, Group]:
    """Each tensor's group. Operators that only pass values on tie their tensors together."""
    values = {edge.key: edge.value for edge in edges}
    sources = _ties(planned, scene)
    activations = [value for (_, spec), value in values.items() if spec == scene.activation]
    found = list(bridges(activations, scene))
    ties, parts = _bridged(sources, found, scene), {bridge.part for bridge in found}
    averaged = averaged_elements(scene.graph)
    taken: set[str] = set()
    groups: dict[Key, Group] = {}
    for root, keys in _members(values, ties).items():
        observe = dict.fromkeys(_root(key, sources) for key in keys if values[key] not in parts)
        group = _group(root, [values[key] for key in keys], {k: values.get(k) for k in observe}, scene)
        name = root[0] if root[0] not in taken else _unique(root)
        group = replace(group, name=name, averaged=max(averaged.get(values[key], 1) for key in keys))
        taken.add(name)
        groups |= dict.fromkeys(keys, group)
    return groups


def _members(keys: Iterable[Key], ties: Mapping[Key, Key]) -> dict[Key, list[Key]]:
    """The root of each group, and all that share its parameters."""
    members: dict[Key, list[Key]] = {}
    for key in keys:
        members.setdefault(_root(key, ties), []).append(key)
    return members


def _unique(key: Key) -> str:
    name, spec = key
    blocks = "" if spec.block_size is None else f"/{spec.block_size}"
    bits = f"-{spec.reduce_bits}" if spec.reduce_bits else ""
    return f"{name}/{spec.dtype.name.lower()}{bits}/{spec.axis}{blocks}"


def _bridged(ties: Mapping[Key, Key], found: Iterable[Bridge], scene: Scene) -> dict[Key, Key]:
    """``ties``, and those of the bridges; the tensor that holds most is the root."""
    result = dict(ties)
    for bridge in found:
        pair = (bridge.above, bridge.below)
        above, below = (_root((value.name or "", scene.activation), result) for value in pair)
        child, parent = (above, below) if bridge.whole is bridge.below else (below, above)
        if child != parent:
            result[child] = parent
    return result


def _ties(planned: Iterable[ir.Node], scene: Scene) -> dict[Key, Key]:
    """Tensor -> the tensor whose parameters it takes: a chain that ends at the root of a group."""
    ties: dict[Key, Key] = {}
    for node in planned:
        rule = scene.target.rules[node.op_type]
        if rule.same_params and node.inputs[0] is not None:
            source = (node.inputs[0].name or "", scene.activation)
            ties |= {(out.name or "", scene.activation): source for out in node.outputs if out.name}
        if rule.inputs_follow:
            output = fused_output(node.outputs[0], rule, scene)
            goal = (output.name or "", scene.activation)
            followers = _followers(node, output, scene)
            ties |= {_root((value.name or "", scene.activation), ties): goal for value in followers}
    return ties


def _root(key: Key, ties: Mapping[Key, Key]) -> Key:
    while key in ties:
        key = ties[key]
    return key


def _followers(node: ir.Node, output: ir.Value, scene: Scene) -> Iterator[ir.Value]:
    """The inputs that lose nothing when they take the parameters of ``node``'s output.

    Nobody else reads them, so that their own, finer grid would be thrown away here; and the Relu or
    Clip before them still fuses, because the output's range has the same limits.
    """
    for value in dict.fromkeys(node.inputs):
        if value is None or value.is_initializer() or not _is_private(value, node, scene):
            continue
        if _fixed_range(value, scene) is not None:
            continue
        if limits(value) in (UNLIMITED, limits(output)):
            yield value


def _is_private(value: ir.Value, reader: ir.Node, scene: Scene) -> bool:
    """Whether only ``reader`` reads ``value`` and the tensors that it shares parameters with."""
    if value.is_graph_output() or any(use.node is not reader for use in value.uses()):
        return False
    producer = value.producer()
    rule = scene.rule(producer) if producer is not None else None
    if producer is None or rule is None or not rule.same_params:
        return True
    source = producer.inputs[0]
    return len(producer.outputs) == 1 and source is not None and _is_private(source, producer, scene)


def limits(value: ir.Value) -> Range:
    """What ``value`` cannot exceed, as far as Relu, Clip, and Concat of them before it tell."""
    producer = value.producer()
    if producer is None:
        return UNLIMITED
    if found := clip_range(producer):
        inner = limits(producer.inputs[0]) if producer.inputs[0] is not None else UNLIMITED
        low, high = (min(max(end, found[0]), found[1]) for end in inner)
        return low, high
    if producer.op_type != "Concat":
        return UNLIMITED
    ranges = [limits(source) if source is not None else UNLIMITED for source in producer.inputs]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _fixed_range(value: ir.Value, scene: Scene) -> Range | None:
    producer = value.producer()
    rule = scene.rule(producer) if producer is not None else None
    return rule.output_range if rule is not None else None


def _group(
    root: Key, values: Sequence[ir.Value], observe: Mapping[Key, ir.Value | None], scene: Scene
) -> Group:
    """A group of ``values``, whose range follows from those to ``observe``; None: not quantized itself."""
    firsts = [value for value in observe.values() if value is not None]
    constant = any(value.is_initializer() for value in firsts)
    fixed = next((_fixed_range(value, scene) for value in firsts), None)
    bounds = [_bounds(value) if value is not None else UNLIMITED for value in observe.values()]
    return Group(
        name=root[0],
        spec=root[1],
        tensors=tuple(value.name or "" for value in values),
        observe=() if constant or fixed is not None else tuple(name for name, _ in observe),
        bounds=UNLIMITED if constant else (min(low for low, _ in bounds), max(high for _, high in bounds)),
        fixed=None if fixed is None else _without_last_step(fixed, root[1]),
        constant=constant,
        unpacked=scene.target.unpacked.get(root[1].dtype) if root[1].block_size is None else None,
        as_reals=constant and scene.target.storage is Storage.REALS,
    )


def _without_last_step(span: Range, spec: QuantSpec) -> Range:
    """The range of the levels that lie evenly in ``span``, whose high end is one step above the last."""
    qmin, qmax = spec.limits
    low, high = span
    return low, high - (high - low) / (qmax - qmin + 1)


def _bounds(value: ir.Value) -> Range:
    """What the producer can give, or else what the consumers can tell apart; zero included."""
    low, high = limits(value)
    if (low, high) == UNLIMITED and value.uses() and not value.is_graph_output():
        ranges = [useful_range(use.node) for use in value.uses()]
        low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    return min(low, 0.0), max(high, 0.0)


# --- Points -----------------------------------------------------------------------------------


def find_points(
    edges: Sequence[Edge], groups: Mapping[Key, Group], planned: Collection[ir.Node], scene: Scene
) -> Iterator[QuantPoint]:
    """The edges as the plan states them."""
    quantized = {edge.value for edge in edges}
    for edge in edges:
        consumer = GRAPH_OUTPUT if edge.node is None else edge.node.name or ""
        guarded = _has_float_constants(edge, planned, scene) and _is_guarded(edge, quantized, scene)
        yield QuantPoint(
            tensor=edge.value.name or "",
            consumer=consumer,
            input_index=edge.index,
            spec=edge.spec,
            group=groups[edge.key].name,
            spread=_spread(edge) if guarded else None,
        )


def _has_float_constants(edge: Edge, planned: Collection[ir.Node], scene: Scene) -> bool:
    """Whether the node that reads this edge has weights, or a bias, that are to stay float."""
    if edge.node is None or edge.node not in planned:
        return True
    return scene.target.bias is BiasStyle.FLOAT and any(_bias_inputs(edge.node, scene))


def _is_guarded(edge: Edge, quantized: Set[ir.Value], scene: Scene) -> bool:
    """Whether the runtime would quantize the weights or the bias of the node that reads this edge.

    It does so if Q stands on the node's output too, perhaps behind Relu or Clip.
    """
    node = edge.node
    if node is None or node not in scene.position or node.op_type not in scene.target.guarded:
        return False
    operator = WEIGHTED[node.op_type]
    if edge.index != operator.data or not _constant(node, operator.weight):
        return False
    output = node.outputs[0]
    while output not in quantized:
        reader = sole_reader(output, scene)
        if reader is None or clip_range(reader) is None:
            return False
        output = reader.outputs[0]
    return True


def _spread(edge: Edge) -> tuple[int, int]:
    assert edge.node is not None
    weight = edge.node.inputs[WEIGHTED[edge.node.op_type].weight]
    assert weight is not None
    assert weight.shape is not None
    return INPUT_CHANNELS[edge.node.op_type](edge.node, tuple(weight.shape.numpy()))


def find_biases(planned: Iterable[ir.Node], groups: Mapping[Key, Group], scene: Scene) -> Iterator[BiasPoint]:
    """The int32 biases of the planned nodes."""
    if scene.target.bias is not BiasStyle.INT32:
        return
    for node in planned:
        for holder, index in _bias_inputs(node, scene):
            operator, bias = WEIGHTED.get(node.op_type), holder.inputs[index]
            assert bias is not None
            data, weight = (operator.data, operator.weight) if operator is not None else (0, 1)
            edges = [_edge(node, i, _input_spec(node, i, scene)) for i in (data, weight)]
            data_group, weight_group = (groups[edge.key].name for edge in edges)
            yield BiasPoint(bias.name or "", holder.name or "", index, data_group, weight_group)


def _bias_inputs(node: ir.Node, scene: Scene) -> Iterator[tuple[ir.Node, int]]:
    """Where the bias of ``node`` is read: by itself, or by the Add behind it."""
    operator = WEIGHTED.get(node.op_type)
    if node in scene.in_blocks:
        return
    index = scene.target.rules[node.op_type].bias if operator is None else operator.bias
    if index is not None and input_at(node, index) is not None:
        yield node, index
    if found := bias_add(node, scene):
        yield found
