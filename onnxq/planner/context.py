"""The data that all planning decisions use, and where Q and DQ would be placed around one node."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantSpec
from onnxq.graph.nodes import constant_value, input_at, is_op, name_of, rank
from onnxq.graph.operators import WEIGHTED, clip_range, data_inputs, is_depthwise, is_single_channel
from onnxq.graph.walks import downstream, only_reader, sole_producer
from onnxq.planner.number_formats import Formats
from onnxq.targets.target import OpRule, Output, Role, Target

_CLIPS = ("Relu", "Clip")


@dataclass(frozen=True)
class PlanningContext:
    """The main graph, the rules of the target, and the user's options.

    Attributes:
        graph: the main graph of the model.
        target: the deployment target.
        config: the user's options.
        formats: the number formats, without the axis.
        position: each node of the main graph -> its position in graph order.
        in_blocks: the nodes whose weights are cut into blocks; all their other tensors are in float.
        ends: the first and the last node with weights, if the target has separate formats for them.
        float_regions: the nodes that are kept in float because no range suits them -> the reason.
        raw: the float inputs of the graph, and what is computed from them without weights.
        own_activations: the nodes whose activations have another format than those of all others.
    """

    graph: ir.Graph
    target: Target
    config: QuantConfig
    formats: Formats
    position: Mapping[ir.Node, int]
    in_blocks: frozenset[ir.Node] = frozenset()
    ends: frozenset[ir.Node] = frozenset()
    float_regions: Mapping[ir.Node, str] = field(default_factory=dict)
    raw: frozenset[ir.Value] = frozenset()
    own_activations: Mapping[ir.Node, QuantSpec] = field(default_factory=dict)

    @property
    def activation(self) -> QuantSpec:
        """The number format of activations, but those of `own_activations`."""
        return self.formats.activation

    @property
    def activations(self) -> frozenset[QuantSpec]:
        """All number formats of activations, but those that rules of the target prescribe."""
        return frozenset((self.activation, *self.own_activations.values()))

    def activation_of(self, node: ir.Node) -> QuantSpec:
        """The number format of the activations that ``node`` gives, and reads if no rule says otherwise."""
        return self.own_activations.get(node, self.activation)

    @property
    def quantize_outputs(self) -> bool:
        """Whether graph outputs are quantized too."""
        return self.config.quantize_outputs or self.target.quantize_outputs

    def rule(self, node: ir.Node) -> OpRule | None:
        """The target's rule for this operator type; None if the target does not quantize it."""
        return self.target.rules.get(node.op_type) if is_op(node, node.op_type) else None

    def role(self, node: ir.Node) -> Role | None:
        """The role that the target gives ``node``; None if the target does not quantize it."""
        rule = self.rule(node)
        if rule is None:
            return None
        lanes = is_depthwise(node) or is_single_channel(node)
        return rule.depthwise if rule.depthwise and lanes else rule.role


def deselected(node: ir.Node, config: QuantConfig) -> str | None:
    """Explain why the user's include and exclude patterns leave ``node`` out; None if they do not."""
    for pattern in config.exclude:
        if matches(node, pattern):
            return f"excluded by {pattern!r}"
    if config.include and not any(matches(node, p) for p in config.include):
        return "no include pattern matches it"
    return None


def matches(node: ir.Node, pattern: str) -> bool:
    """Whether ``pattern`` matches the node: a glob of its name, or ``op:`` and a glob of its type."""
    if pattern.startswith("op:"):
        return fnmatchcase(node.op_type, pattern[3:])
    return fnmatchcase(name_of(node), pattern)


def sole_reader(value: ir.Value, context: PlanningContext) -> ir.Node | None:
    """The only reader of ``value``, if there is one reader, in the main graph, and it is no graph output."""
    reader = only_reader(value)
    return reader if reader in context.position else None


def fused_output(value: ir.Value, rule: OpRule, context: PlanningContext) -> ir.Value:
    """The tensor that Q is placed on: ``value``, or the output of the last Relu or Clip that fuses with it.

    A Relu or Clip fuses if nothing else reads the unclipped tensor and zero lies within its limits (a grid
    always holds zero). Nothing fuses with an operator whose output keeps its input's parameters.

    Args:
        value: an output of a node.
        rule: the target's rule for that node.
        context: the planning context.
    """
    clips = list(fused_clips(value, rule, context))
    return clips[-1].outputs[0] if clips else value


def fused_clips(value: ir.Value, rule: OpRule, context: PlanningContext) -> Iterator[ir.Node]:
    """Yield the successive Relu and Clip nodes that fuse with the node that computes ``value``.

    Args:
        value: an output of a node.
        rule: the target's rule for that node.
        context: the planning context.
    """
    for _ in range(0 if rule.same_params else context.target.fused_clips):
        clip = sole_reader(value, context)
        limits = clip_range(clip) if clip is not None and not deselected(clip, context.config) else None
        if clip is None or limits is None or not limits[0] <= 0 <= limits[1] or limits[0] == limits[1]:
            break
        yield clip
        value = clip.outputs[0]


def integer_outputs(node: ir.Node, context: PlanningContext) -> list[ir.Value]:
    """The output tensors that get a Q because ``node`` is quantized, after any Relu or Clip that fuses."""
    rule = context.target.rules[node.op_type]
    if rule.output is Output.FREE or node in context.in_blocks:
        return []
    values = [value for value in node.outputs if value.name]
    if rule.output is Output.QUANTIZED:
        return [fused_output(value, rule, context) for value in values]
    return [_clipped(v, rule, context) for v in values if fused_in_float(node, v, rule, context)]


def fused_in_float(node: ir.Node, value: ir.Value, rule: OpRule, context: PlanningContext) -> bool:
    """Whether the runtime would fuse the reader of ``value`` with ``node`` in float without a Q between.

    Args:
        node: a planned node.
        value: one of its outputs.
        rule: the target's rule for it.
        context: the planning context.
    """
    reader = sole_reader(value, context)
    if reader is None or not is_op(reader, *rule.fused_in_float):
        return False
    if is_op(reader, "Add"):
        return _swallowed(node, value, reader, context)
    return sole_reader(reader.outputs[0], context) is not None


def _swallowed(node: ir.Node, value: ir.Value, add: ir.Node, context: PlanningContext) -> bool:
    """Whether ``add``, the only reader of ``value``, is not a bias and could be fused with ``node``."""
    if not _becomes_gemm(node, context) or bias_add(node, context):
        return False
    other = add.inputs[1 - _position(value, add)]
    return rank(other) in (None, 1, 2)


def _becomes_gemm(node: ir.Node, context: PlanningContext) -> bool:
    """Whether the runtime turns ``node`` and an Add after it into one Gemm: for matrices and known shapes."""
    data = node.inputs[0]
    if not context.target.rules[node.op_type].bias_add or data is None or data.shape is None:
        return False
    return len(data.shape) == 2 or data.shape.is_static()


def _clipped(value: ir.Value, rule: OpRule, context: PlanningContext) -> ir.Value:
    fused = fused_output(value, rule, context)
    return value if fused.is_graph_output() and not context.quantize_outputs else fused


def bias_add(node: ir.Node, context: PlanningContext) -> tuple[ir.Node, int] | None:
    """Find the Add after ``node`` that adds a bias (one constant per column), and the bias's input index."""
    add = sole_reader(node.outputs[0], context)
    if (
        add is None
        or not is_op(add, "Add")
        or deselected(add, context.config)
        or not _becomes_gemm(node, context)
    ):
        return None
    index = 1 - _position(node.outputs[0], add)
    bias, weight = constant_value(add.inputs[index]), constant_value(node.inputs[1])
    if bias is None or weight is None or weight.ndim != 2 or bias.ndim > (rank(node.outputs[0]) or 0):
        return None
    return (add, index) if bias.shape[-1:] == weight.shape[1:] == (bias.size,) else None


def _position(value: ir.Value, reader: ir.Node) -> int:
    return next(i for i, source in enumerate(reader.inputs) if source is value)


def mixed_consumers(
    node: ir.Node, read: Collection[ir.Value | None], context: PlanningContext
) -> list[ir.Value]:
    """The outputs with mixed consumers: read in integers by some and in float by others.

    Only operators whose kernel gives either integers or float, not both, have such outputs. Reads through
    Relu and Clip count too, because the runtime drops a Relu or Clip that Q makes superfluous.

    Args:
        node: a planned node.
        read: the tensors that are read in integers.
        context: the planning context.
    """
    if context.target.rules[node.op_type].output is not Output.ALL_OR_NONE or node in context.in_blocks:
        return []
    return [
        value
        for value in node.outputs
        if len(tuple(value.uses())) + value.is_graph_output() > 1
        and any(v in read for v in downstream(value, lambda node: is_op(node, *_CLIPS)))
    ]


def integer_inputs(node: ir.Node, context: PlanningContext) -> list[int]:
    """The indices of the inputs that ``node`` reads in integers when it is quantized."""
    rule = context.target.rules[node.op_type]
    if rule.role is Role.RESIDUAL:
        return skip_inputs(node, rule, context)
    if node in context.in_blocks:
        return [WEIGHTED[node.op_type].weight]
    if rule.on_integers:
        return [0]
    return [i for i in data_inputs(node) if i != rule.bias and input_at(node, i) is not None]


def skip_inputs(node: ir.Node, rule: OpRule, context: PlanningContext) -> list[int]:
    """For a residual sum, the inputs that do not come from the last operator that it could be fused into.

    Args:
        node: a sum.
        rule: the target's rule for it.
        context: the planning context.

    Returns:
        The input indices; empty if the sum cannot be fused.
    """
    if any(value is None or value.is_initializer() for value in node.inputs):
        return []
    branches = [
        (context.position[producer], index)
        for index, value in enumerate(node.inputs)
        if (producer := sole_producer(value)) and producer in context.position
        if is_op(producer, *rule.sums_with)
    ]
    return [i for i in range(len(node.inputs)) if i != max(branches)[1]] if branches else []
