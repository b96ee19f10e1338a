"""Trace the kernels of a profile back to nodes of the float model, or to the tensors that they convert.

A kernel is traced back by its name or by the names of its tensors. ONNX Runtime keeps most of these names
when it fuses nodes or changes memory layouts.
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
"""Operators that only change the type or the memory layout of a tensor, if ONNX Runtime or Q/DQ adds them."""

_ADDED = re.compile(r"(_token_\d+|_nchwc|/[^/]+)$")
"""The suffixes that ONNX Runtime adds to names."""


@dataclass(frozen=True)
class Traced:
    """A traced profile. All names are those of the float model; times are in seconds.

    Attributes:
        nodes: nodes that represent kernels -> the time of these kernels.
        owners: every node -> the node that represents its kernel.
        tensors: tensors -> the time of their conversions: Q, DQ, changes of the memory layout.
        quantized: the tensors that a separate QuantizeLinear kernel quantizes.
        elements: tensors -> the number of their elements, where kernels report it.
    """

    nodes: Mapping[str, float]
    owners: Mapping[str, str]
    tensors: Mapping[str, float]
    quantized: frozenset[str]
    elements: Mapping[str, int]


def trace(profile: Profile, quantized: ir.Graph, graph: ir.Graph) -> Traced:
    """Trace a profile back to the float model.

    Args:
        profile: the profile of ``quantized``.
        quantized: ``graph`` with inserted Q/DQ, or ``graph`` itself.
        graph: the float model.
    """
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
    """The meaning of the names in a model with Q/DQ.

    Attributes:
        nodes: the nodes of the float model by name.
        values: its inputs and computed tensors by name.
        conversions: inserted Q, DQ or Cast nodes -> the float tensors that they convert.
        same: tensors of the model with Q/DQ -> the tensors of the float model with the same values.
    """

    nodes: Mapping[str, ir.Node]
    values: Mapping[str, ir.Value]
    conversions: Mapping[str, str]
    same: Mapping[str, str]

    @classmethod
    def of(cls, quantized: ir.Graph, graph: ir.Graph) -> _Names:
        """Collect the names of the model with Q/DQ and of the float model ``graph``."""
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
        """Whether ``kernel`` only changes the type or the memory layout of its input."""
        return kernel.op_type in _LAYOUTS and not any(name in self.nodes for name in _shorter(kernel.name))


def _shorter(name: str) -> Iterator[str]:
    """Yield ``name``, then ``name`` without one suffix of ONNX Runtime, without two, and so on."""
    yield name
    while (shorter := _ADDED.sub("", name)) != name:
        name = shorter
        yield name


def _held(layouts: Sequence[Kernel], names: _Names) -> dict[str, str]:
    """Map tensors of kernels to the tensors of the float model with the same values, where known."""
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
    """Pair each kernel with its node, or with the last one of the nodes that are fused in it.

    An unknown kernel gets the node of its consumer.
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
    """Map each node to the node that represents its kernel.

    The other nodes of a kernel lie before the representing node, or else after it.
    """
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
    """Return the nodes between the tensors ``read`` and ``anchor`` that represent no kernel themselves."""
    found: set[ir.Node] = set()
    waiting = [anchor]
    while waiting:
        for value in waiting.pop().inputs:
            maker = value.producer() if value is not None and value.name not in read else None
            if maker is not None and maker not in taken and maker not in found:
                found.add(maker)
                waiting.append(maker)
    return found
