"""Give every node and every tensor a unique name, across all graphs of the model.

Plans, statistics and calibration tables refer to nodes and tensors by name. But ONNX allows nodes without
names, and allows the bodies of If and Loop to use a name twice. Names of graph inputs and outputs are the
model's interface and never change; every other name is kept at its first use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from onnxq.graph.nodes import all_nodes
from onnxq.graph.walks import is_read


class UniqueNamesPass(ir.passes.InPlacePass):
    """Append a number to the second use of a name, and make missing names from the operator."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Name the interface first, then the initializers, then the rest in graph order."""
        nodes = list(all_nodes(model))
        values = dict.fromkeys(_values(model, nodes))
        modified = _rename(values, {value: value.producer() for value in values})
        return ir.passes.PassResult(model, modified=_rename_nodes(nodes) or modified)

    def ensures(self, model: ir.Model) -> None:
        """Check that no name is missing or used twice."""
        nodes = list(all_nodes(model))
        names = [value.name for value in dict.fromkeys(_values(model, nodes))]
        if len(set(names)) != len(names) or len({node.name for node in nodes}) != len(nodes):
            raise ir.passes.PostconditionError("a name is used twice")


def _values(model: ir.Model, nodes: list[ir.Node]) -> Iterator[ir.Value]:
    """Yield every tensor. An optional output that is left out (no name, no readers) is not a tensor."""
    yield from model.graph.inputs
    yield from model.graph.outputs
    for graph in model.graphs():
        yield from graph.initializers.values()
    for graph in model.graphs():
        yield from graph.inputs
    for node in nodes:
        yield from (o for o in node.outputs if o.name or is_read(o))


def _rename(values: dict[ir.Value, None], producers: dict[ir.Value, ir.Node | None]) -> bool:
    namer = _Namer({value.name for value in values if value.name})
    modified = False
    for value in values:
        producer = producers[value]
        base = value.name or (producer.op_type if producer is not None else "tensor")
        name = namer.name(base, is_own=bool(value.name))
        if name != value.name:
            value.name, modified = name, True
    return modified


def _rename_nodes(nodes: list[ir.Node]) -> bool:
    namer = _Namer({node.name for node in nodes if node.name})
    modified = False
    for node in nodes:
        name = namer.name(node.name or f"{node.op_type}_{node.outputs[0].name}", is_own=bool(node.name))
        if name != node.name:
            node.name, modified = name, True
    return modified


class _Namer:
    """Gives out unique names; a name in use stays with the first owner that requests it."""

    def __init__(self, in_use: set[str]) -> None:
        self._unclaimed = set(in_use)
        self._taken = set(in_use)
        self._counts: Counter[str] = Counter()

    def name(self, base: str, is_own: bool) -> str:
        """Return ``base``, or base_1, base_2 … if it is not free."""
        if is_own and base in self._unclaimed:
            self._unclaimed.remove(base)
            return base
        name = base
        while name in self._taken:
            self._counts[base] += 1
            name = f"{base}_{self._counts[base]}"
        self._taken.add(name)
        return name
