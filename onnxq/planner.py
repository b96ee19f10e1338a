"""Model + target -> plan: which edges are quantized, how, and why the others are not.

1. *Anchors* (operators with weights) are quantized wherever the target allows it.
2. *Links* (Add, Concat, pooling, Reshape ...) join them only where their inputs already are integers
   and somebody reads their output as integers: elsewhere Q/DQ would cost time and accuracy for
   nothing. Links depend on each other, so those that fail are dropped until none does.
3. *Residual* additions, for targets that fuse them into the convolution before them.

Every other node stays float, with a reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxq.config import QuantConfig
from onnxq.errors import TargetError
from onnxq.graph import all_nodes, constant_value, input_at, is_op
from onnxq.operators import WEIGHTED, clip_range, data_inputs, useful_range
from onnxq.plan import GRAPH_OUTPUT, BiasPoint, FloatNode, Group, QuantPlan, QuantPoint, QuantSpec
from onnxq.targets.target import BiasStyle, OpRule, Output, Role, Target

_CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
_IN_BODY = "it lies in the body of a control-flow operator, whose tensors cannot be observed"


@dataclass(frozen=True)
class _Scene:
    """What every decision looks at."""

    graph: ir.Graph
    target: Target
    config: QuantConfig
    activation: QuantSpec
    weight: QuantSpec
    position: Mapping[ir.Node, int]

    def rule(self, node: ir.Node) -> OpRule | None:
        return self.target.rules.get(node.op_type) if is_op(node, node.op_type) else None


def make_plan(model: ir.Model, target: Target, config: QuantConfig) -> QuantPlan:
    """Decide what is quantized. ``model`` must be simplified: named, typed, constants as initializers.

    Raises:
        TargetError: the target does not take the number formats that ``config`` asks for.
    """
    position = {node: i for i, node in enumerate(model.graph)}
    scene = _Scene(model.graph, target, config, *_specs(target, config), position)
    floats = {node.name or "": reason for node in model.graph if (reason := _obstacle(node, scene))}
    able = [node for node in model.graph if _is_float(node) and node.name not in floats]
    anchors = [node for node in able if _role(node, scene) is Role.ANCHOR]
    links = _join(anchors, [node for node in able if _role(node, scene) is Role.LINK], scene, floats)
    residuals = [n for n in able if _role(n, scene) is Role.RESIDUAL and _skip_inputs(n, scene)]
    planned = sorted({*anchors, *links, *residuals}, key=position.__getitem__)
    alone = [n for n in able if _role(n, scene) is Role.RESIDUAL and n not in residuals]
    floats |= {node.name or "": "no convolution before it to fuse with" for node in alone}
    edges = _edges(planned, scene)
    groups = _groups(edges, planned, scene)
    return QuantPlan(
        target=target.name,
        points=tuple(_point(edge, groups) for edge in edges),
        biases=tuple(_biases(planned, groups, scene)),
        groups={group.name: group for group in groups.values()},
        nodes={node.name or "": node.op_type for node in planned},
        floats=_tell(floats, planned, model),
    )


def _specs(target: Target, config: QuantConfig) -> tuple[QuantSpec, QuantSpec]:
    specs = []
    for kind, spec, allowed, asked in (
        ("activation", target.activation, target.activation_types, config.activation),
        ("weight", target.weight, target.weight_types, config.weight),
    ):
        dtype = ir.DataType[asked.upper()] if asked else spec.dtype
        if dtype not in allowed:
            valid = ", ".join(sorted(t.name.lower() for t in allowed))
            raise TargetError(f"target {target.name} does not take {asked} as {kind} type; valid: {valid}")
        specs.append(replace(spec, dtype=dtype))
    return specs[0], specs[1]


# --- Can this node be quantized at all? -------------------------------------------------------


def _is_float(node: ir.Node) -> bool:
    """Whether the node computes real numbers (and is no mere constant)."""
    return any(out.dtype is not None and out.dtype.is_floating_point() for out in node.outputs)


def _role(node: ir.Node, scene: _Scene) -> Role | None:
    rule = scene.rule(node)
    return rule.role if rule else None


def _obstacle(node: ir.Node, scene: _Scene) -> str | None:
    """Why ``node``, looked at alone, cannot be quantized; None if it can (or computes no reals)."""
    if not _is_float(node):
        return None
    rule = scene.rule(node)
    if rule is None:
        return f"target {scene.target.name} has no integer kernel for {node.op_identifier()[1]}"
    checks = (_not_selected, _wrong_attribute, _not_float32, _bad_weight, _bad_bias, _float_output)
    return next((reason for check in checks if (reason := check(node, rule, scene))), None)


def matches(node: ir.Node, pattern: str) -> bool:
    """Whether ``pattern`` means the node: a glob of its name, or ``op:`` and one of its operator type."""
    if pattern.startswith("op:"):
        return fnmatchcase(node.op_type, pattern[3:])
    return fnmatchcase(node.name or "", pattern)


def _not_selected(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    for pattern in scene.config.exclude:
        if matches(node, pattern):
            return f"excluded by {pattern!r}"
    if scene.config.include and not any(matches(node, p) for p in scene.config.include):
        return "not among the nodes to include"
    return None


def _wrong_attribute(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    for name, wanted in rule.attributes.items():
        attribute = node.attributes.get(name)
        actual = wanted if attribute is None else attribute.value
        if actual != wanted:
            return f"its {name} is {actual}, the integer kernel needs {wanted}"
    return None


def _not_float32(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    inputs = [node.inputs[i] for i in data_inputs(node) if i < len(node.inputs)]
    for value in (*inputs, *node.outputs):
        if value is not None and value.name and value.dtype != ir.DataType.FLOAT:
            return f"{value.name!r} is {value.dtype.name if value.dtype else 'untyped'}, expected FLOAT"
    if node.op_type == "MaxPool" and len(node.outputs) > 1 and node.outputs[1].uses():
        return "its indices output is used"
    return None


def _bad_weight(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    operator = WEIGHTED.get(node.op_type)
    if operator is None:
        return None
    if _constant(node, operator.data):
        return "its data input is a constant"
    if not _constant(node, operator.weight) and not rule.dynamic_weight:
        return "its second operand is computed at run time"
    return None


def _bad_bias(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    operator = WEIGHTED.get(node.op_type)
    if operator is None or scene.target.bias is BiasStyle.FLOAT:
        return None
    bias = input_at(node, operator.bias) if operator.bias is not None else None
    if bias is None:
        return None
    if not bias.is_initializer():
        return "its bias is computed at run time"
    channels = _channels(node)
    shape = bias.shape.numpy() if bias.shape is not None and bias.shape.is_static() else ()
    if math.prod(shape) not in (1, channels) or (shape and shape[-1] not in (1, channels)):
        return f"its bias has shape {list(shape)}, expected one value a channel"
    return None


def _float_output(node: ir.Node, rule: OpRule, scene: _Scene) -> str | None:
    if rule.output is Output.FREE or scene.config.quantize_outputs:
        return None
    for value in node.outputs:
        if _fused_output(value, rule, scene).is_graph_output():
            return "its output leaves the graph, which stays float (--quantize-outputs changes that)"
    return None


def _constant(node: ir.Node, index: int) -> bool:
    value = input_at(node, index)
    return value is not None and constant_value(value) is not None


def _channels(node: ir.Node) -> int:
    """Output channels of an operator with constant weights."""
    operator = WEIGHTED[node.op_type]
    weight = node.inputs[operator.weight]
    assert weight is not None and weight.shape is not None
    axis = operator.channel_axis(node, len(weight.shape))
    return int(weight.shape.numpy()[axis]) if axis is not None else 1


# --- Where do Q and DQ stand? -----------------------------------------------------------------


def _fused_output(value: ir.Value, rule: OpRule, scene: _Scene) -> ir.Value:
    """The tensor that Q stands on: ``value``, or what Relu/Clip make of it if they fuse.

    They do if nobody else reads the unclipped tensor and zero survives the clip (a grid always
    holds zero). An operator whose output keeps its input's parameters fuses with none.
    """
    uses = value.uses()
    if rule.same_params or value.is_graph_output() or len(uses) != 1:
        return value
    clip = uses[0].node
    limits = clip_range(clip)
    if limits is None or clip.graph is not scene.graph or _not_selected(clip, rule, scene):
        return value
    return _fused_output(clip.outputs[0], rule, scene) if limits[0] <= 0 <= limits[1] else value


def _integer_outputs(node: ir.Node, scene: _Scene) -> list[ir.Value]:
    rule = scene.target.rules[node.op_type]
    if rule.output is Output.FREE:
        return []
    return [_fused_output(value, rule, scene) for value in node.outputs if value.name]


def _integer_inputs(node: ir.Node, scene: _Scene) -> list[int]:
    if scene.target.rules[node.op_type].role is Role.RESIDUAL:
        return _skip_inputs(node, scene)
    return [i for i in data_inputs(node) if input_at(node, i) is not None]


def _join(
    anchors: list[ir.Node], candidates: list[ir.Node], scene: _Scene, floats: dict[str, str]
) -> list[ir.Node]:
    """The links whose inputs are integers anyway and whose output is read as integers."""
    kept = candidates
    while True:
        made = {value for node in (*anchors, *kept) for value in _integer_outputs(node, scene)}
        read = {node.inputs[i] for node in anchors for i in _integer_inputs(node, scene)}
        wanted = read | {node.inputs[i] for node in kept for i in _integer_inputs(node, scene)}
        failing = {}
        for node in kept:
            inputs = [v for i in _integer_inputs(node, scene) if (v := node.inputs[i]) is not None]
            late = [v for v in inputs if v not in made and v not in read and not v.is_initializer()]
            if late or all(v.is_initializer() for v in inputs):
                name = late[0].name if late else node.inputs[0] and node.inputs[0].name
                failing[node] = f"its input {name!r} comes in float"
            elif not any(v in wanted or v.is_graph_output() for v in _integer_outputs(node, scene)):
                failing[node] = "nothing reads its output as integers"
        if not failing:
            return kept
        floats |= {node.name or "": reason for node, reason in failing.items()}
        kept = [node for node in kept if node not in failing]


def _skip_inputs(node: ir.Node, scene: _Scene) -> list[int]:
    """For an Add after a convolution: the inputs that do not come from the last such convolution."""
    if any(value is None or value.is_initializer() for value in node.inputs):
        return []
    branches = [
        (scene.position[producer], index)
        for index, value in enumerate(node.inputs)
        if (producer := _private_producer(value, scene)) and producer.op_type in _CONVOLUTIONS
    ]
    return [i for i in range(len(node.inputs)) if i != max(branches)[1]] if branches else []


def _private_producer(value: ir.Value | None, scene: _Scene) -> ir.Node | None:
    """The node of the main graph that made ``value`` for one reader alone."""
    if value is None or value.is_graph_output() or len(value.uses()) != 1:
        return None
    producer = value.producer()
    return producer if producer in scene.position else None


@dataclass(frozen=True)
class _Edge:
    value: ir.Value
    consumer: str
    index: int
    spec: QuantSpec


def _edges(planned: Iterable[ir.Node], scene: _Scene) -> list[_Edge]:
    """Every quantized edge once: inputs of planned nodes, and all readers of their integer outputs."""
    edges: dict[tuple[str, int], _Edge] = {}
    for node in planned:
        for index in _integer_inputs(node, scene):
            value = node.inputs[index]
            assert value is not None
            edges[node.name or "", index] = _Edge(
                value, node.name or "", index, _edge_spec(node, index, scene)
            )
        for value in _integer_outputs(node, scene):
            for reader, index in _readers(value, scene.graph):
                edges.setdefault((reader, index), _Edge(value, reader, index, scene.activation))
    return list(edges.values())


def _readers(value: ir.Value, graph: ir.Graph) -> Iterator[tuple[str, int]]:
    yield from ((use.node.name or "", use.idx) for use in value.uses())
    yield from ((GRAPH_OUTPUT, i) for i, output in enumerate(graph.outputs) if output is value)


def _edge_spec(node: ir.Node, index: int, scene: _Scene) -> QuantSpec:
    operator = WEIGHTED.get(node.op_type)
    if operator is None or index != operator.weight or not _constant(node, index):
        return scene.activation
    weight = node.inputs[index]
    assert weight is not None and weight.shape is not None
    per_channel = scene.target.rules[node.op_type].per_channel and not scene.config.per_tensor
    axis = operator.channel_axis(node, len(weight.shape)) if per_channel else None
    return replace(scene.weight, axis=axis)


# --- Who shares parameters? -------------------------------------------------------------------

_Key = tuple[str, QuantSpec]


def _groups(edges: list[_Edge], planned: Iterable[ir.Node], scene: _Scene) -> dict[_Key, Group]:
    """(tensor name, spec) -> its group. Operators that only pass values on tie their tensors together."""
    values: dict[_Key, ir.Value] = {(edge.value.name or "", edge.spec): edge.value for edge in edges}
    source: dict[_Key, _Key] = {}
    for node in planned:  # in graph order, so a source's own source is known
        if scene.target.rules[node.op_type].same_params and node.inputs[0] is not None:
            root = (node.inputs[0].name or "", scene.activation)
            root = source.get(root, root)
            source |= {(out.name or "", scene.activation): root for out in node.outputs if out.name}
    members: dict[_Key, list[_Key]] = {}
    for key in values:
        members.setdefault(source.get(key, key), []).append(key)
    taken: set[str] = set()
    groups: dict[_Key, Group] = {}
    for root, keys in members.items():
        group = _group(root, [values[k] for k in keys], values.get(root), taken)
        taken.add(group.name)
        groups |= dict.fromkeys(keys, group)
    return groups


def _group(root: _Key, values: list[ir.Value], first: ir.Value | None, taken: set[str]) -> Group:
    name, spec = root
    constant = first is not None and first.is_initializer()
    unique = name if name not in taken else f"{name}/{spec.dtype.name.lower()}/{spec.axis}"
    return Group(
        name=unique,
        spec=spec,
        tensors=tuple(value.name or "" for value in values),
        observe=() if constant else (name,),
        bounds=(-math.inf, math.inf) if constant or first is None else _bounds(first),
        constant=constant,
    )


def _bounds(value: ir.Value) -> tuple[float, float]:
    """What the producer can give, or else what the consumers can tell apart."""
    producer = value.producer()
    limits = clip_range(producer) if producer is not None else None
    if limits is None:
        if value.is_graph_output() or not value.uses():
            return -math.inf, math.inf
        ranges = [useful_range(use.node) for use in value.uses()]
        limits = min(low for low, _ in ranges), max(high for _, high in ranges)
    return min(limits[0], 0.0), max(limits[1], 0.0)


def _point(edge: _Edge, groups: Mapping[_Key, Group]) -> QuantPoint:
    name = edge.value.name or ""
    return QuantPoint(name, edge.consumer, edge.index, edge.spec, groups[name, edge.spec].name)


def _biases(planned: Iterable[ir.Node], groups: Mapping[_Key, Group], scene: _Scene) -> Iterator[BiasPoint]:
    for node in planned:
        operator = WEIGHTED.get(node.op_type)
        if operator is None or scene.target.bias is not BiasStyle.INT32:
            continue
        bias = input_at(node, operator.bias) if operator.bias is not None else None
        if bias is None or operator.bias is None:
            continue
        data, weight = node.inputs[operator.data], node.inputs[operator.weight]
        assert data is not None and weight is not None
        data_group = groups[data.name or "", scene.activation]
        weight_group = groups[weight.name or "", _edge_spec(node, operator.weight, scene)]
        yield BiasPoint(bias.name or "", node.name or "", operator.bias, data_group.name, weight_group.name)


# --- What is said of the rest -----------------------------------------------------------------


def _tell(floats: dict[str, str], planned: Iterable[ir.Node], model: ir.Model) -> dict[str, FloatNode]:
    """Reasons in graph order; a Relu/Clip that fuses into a planned node needs none."""
    fused = {
        use.node
        for node in planned
        for value in node.outputs
        for use in value.uses()
        if clip_range(use.node) and len(value.uses()) == 1
    }
    reasons = {n: floats[n.name or ""] for n in model.graph if n.name in floats and n not in fused}
    bodies = {n: _IN_BODY for n in all_nodes(model) if n.graph is not model.graph and n.op_type in WEIGHTED}
    return {n.name or "": FloatNode(n.op_type, reason) for n, reason in {**reasons, **bodies}.items()}
