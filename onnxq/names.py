"""Names for new nodes and tensors: the one wanted, with a number where it is taken."""

from __future__ import annotations

from collections.abc import Container
from itertools import chain, count

import onnx_ir as ir


def unused(name: str, taken: Container[str | None]) -> str:
    """``name``, or the first of ``name_1``, ``name_2`` … that is not ``taken``."""
    names = chain([name], (f"{name}_{number}" for number in count(1)))
    return next(each for each in names if each not in taken)


def unused_name(name: str, model: ir.Model) -> str:
    """``name``, or with a number when a tensor of the main graph has it."""
    return unused(name, ir.convenience.create_value_mapping(model.graph))


def unused_node(name: str, model: ir.Model) -> str:
    """``name``, or with a number when a node has it."""
    return unused(name, {node.name for node in model.graph.all_nodes()})
