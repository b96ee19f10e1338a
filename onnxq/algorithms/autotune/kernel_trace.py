"""A profile in words of the float model: which nodes a kernel stands for, which tensor it only converts.

A kernel is traced back by its name, or by those of its tensors, which mostly survive ONNX Runtime's fusions
and changes of the memory's layout.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.algorithms.autotune.profile import Kernel, Profile
from onnxq.graph.nodes import name_of

_CONVERSIONS = frozenset({"QuantizeLinear", "DequantizeLinear", "Cast"})
_LAYOUTS = frozenset({*_CONVERSIONS, "ReorderInput", "ReorderOutput", "Transpose"})
"""What gives the tensor that it reads, in another type or order, if it is no node of the float model."""

_ADDED = re.compile(r"(_token_\d+|_nchwc|/[^/]+)$")
"""What ONNX Runtime adds to a name."""


@dataclass(frozen=True)
class Traced:
    """By names of the float model; times in seconds.

    Attributes:
        nodes: what its kernels take, of each node that stands for one or more.
        owners: every node -> the node that stands for the kernel that covers it.
        tensors: what the conversions of a tensor take: Q, DQ, changes of the memory's layout.
        quantized: the tensors that a QuantizeLinear of their own turns into integers.
        elements: of tensors, as far as kernels tell.
    """

    nodes: Mapping[str, float]
    owners: Mapping[str, str]
    tensors: Mapping[str, float]
    quantized: frozenset[str]
    elements: Mapping[str, int]


def trace(profile: Profile, quantized: ir.Graph, graph: ir.Graph) -> Traced:
    """``profile`` is of ``quantized``, which is ``graph`` with Q/DQ put in, or ``graph`` itself."""
    names = _Names.of(quantized, graph)
    layouts = [kernel for kernel in profile.kernels if names.is_layout(kernel)]
    others = [kernel for kernel in profile.kernels if not names.is_layout(kernel)]
    held = _held(layouts, names)
    anchors = _anchors(others, names, held)
    owners = _owners(graph, anchors, held)
    tensors: dict[str, float] = defaultdict(float)
    nodes: dict[str, float] = defaultdict(float)
    for kernel in layouts:
        tensors[held.get(kernel.inputs[0], "")] += kernel.seconds
    for kernel, node in anchors:
        nodes[owners[name_of(node)]] += kernel.seconds
    return Traced(
        nodes=nodes,
        owners=owners,
        tensors=tensors,
        quantized=frozenset(held.get(k.inputs[0], "") for k in layouts if k.op_type == "QuantizeLinear"),
        elements={held[k.inputs[0]]: k.elements for k in profile.kernels if k.inputs and k.inputs[0] in held},
    )


@dataclass(frozen=True)
class _Names:
    """What names mean.

    Attributes:
        nodes: of the float model.
        values: its tensors, computed ones and inputs.
        conversions: Q, DQ or Cast that was put in -> the tensor that it converts.
        same: tensor of the model with Q/DQ -> the tensor of the float model whose values it holds.
    """

    nodes: Mapping[str, ir.Node]
    values: Mapping[str, ir.Value]
    conversions: Mapping[str, str]
    same: Mapping[str, str]

    @classmethod
    def of(cls, quantized: ir.Graph, graph: ir.Graph) -> _Names:
        """Of the two graphs."""
        nodes = {name_of(node): node for node in graph}
        computed = [value for node in graph for value in node.outputs if value.name]
        values = {name_of(value): value for value in (*graph.inputs, *computed)}
        same = {name_of(value): name_of(value) for value in graph.inputs}
        conversions: dict[str, str] = {}
        for node in quantized:
            source = same.get(name_of(node.inputs[0])) if node.inputs and node.inputs[0] else None
            if original := nodes.get(name_of(node)):
                pairs = zip(node.outputs, original.outputs, strict=False)
                same |= {name_of(new): name_of(old) for new, old in pairs}
            elif source is not None:
                conversions[name_of(node)] = same[name_of(node.outputs[0])] = source
        return cls(nodes, values, conversions, same)

    def is_layout(self, kernel: Kernel) -> bool:
        """Whether it only converts the tensor that it reads."""
        return kernel.op_type in _LAYOUTS and not any(name in self.nodes for name in _shorter(kernel.name))


def _shorter(name: str) -> Iterator[str]:
    """``name``, and what it was before ONNX Runtime added to it."""
    yield name
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
        yield name


def _held(layouts: Sequence[Kernel], names: _Names) -> dict[str, str]:
    """Tensor of a kernel -> the tensor of the float model whose values it holds, as far as that is known."""
    held = dict(names.same)
    for kernel in layouts:
        for name in _shorter(kernel.name):
            if name in names.conversions:
                held |= dict.fromkeys((kernel.inputs[0], kernel.outputs[0]), names.conversions[name])
    for _ in range(2):
        for kernel in (*layouts, *reversed(layouts)):
            ends = kernel.inputs[0], kernel.outputs[0]
            if known := [held[end] for end in ends if end in held]:
                held |= dict.fromkeys(ends, known[0])
    return held


def _anchors(
    kernels: Sequence[Kernel], names: _Names, held: Mapping[str, str]
) -> list[tuple[Kernel, ir.Node]]:
    """The kernels, each with the node that it is, or with the last one of those that it covers.

    One that nothing is known of is a part of what its reader is a part of.
    """
    found: dict[str, ir.Node] = {}
    pairs = []
    for kernel in reversed(kernels):
        node = _anchor(kernel, names, held)
        node = node or next((found[name] for name in kernel.outputs if name in found), None)
        if node is not None:
            found |= dict.fromkeys(kernel.inputs, node)
            pairs.append((kernel, node))
    return pairs[::-1]


def _anchor(kernel: Kernel, names: _Names, held: Mapping[str, str]) -> ir.Node | None:
    tensors = []
    for name in _shorter(kernel.name):
        if name in names.nodes:
            return names.nodes[name]
        tensors.append(name)
    tensors += [held[name] for name in kernel.outputs if name in held]
    makers = (names.values[name].producer() for name in tensors if name in names.values)
    return next((node for node in makers if node is not None), None)


def _owners(
    graph: ir.Graph, anchors: Iterable[tuple[Kernel, ir.Node]], held: Mapping[str, str]
) -> dict[str, str]:
    """What a kernel covers besides the node that stands for it lies before that, or else behind it."""
    anchors = list(anchors)
    taken = {node for _, node in anchors}
    owners = {node: node for node in taken}
    for kernel, anchor in anchors:
        if kernel.inputs and kernel.inputs[0] in held:
            read = {held[name] for name in kernel.inputs if name in held}
            owners |= dict.fromkeys(_before(anchor, read, taken), anchor)
    position = {node: i for i, node in enumerate(graph)}
    for node in graph:
        if node not in owners:
            makers = [maker for value in node.inputs if value and (maker := value.producer()) in position]
            last = max(makers, key=lambda maker: position[maker], default=None)
            owners[node] = owners.get(last, node) if last is not None else node
    return {name_of(node): name_of(owner) for node, owner in owners.items()}


def _before(anchor: ir.Node, read: set[str], taken: set[ir.Node]) -> set[ir.Node]:
    """The nodes between the tensors that are ``read`` and ``anchor`` that stand for no kernel themselves."""
    found: set[ir.Node] = set()
    waiting = [anchor]
    while waiting:
        for value in waiting.pop().inputs:
            maker = value.producer() if value is not None and value.name not in read else None
            if maker is not None and maker not in taken and maker not in found:
                found.add(maker)
                waiting.append(maker)
    return found
