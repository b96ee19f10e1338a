"""The parts of a graph that are kept in float because no range suits them, one kind a file.

A kind is a function: graph -> node -> the reason that users read.
"""

from collections.abc import Callable, Mapping

import onnx_ir as ir

from onnxq.planner.float_regions.angles import angle_nodes
from onnxq.planner.float_regions.divisors import dividing_nodes
from onnxq.planner.float_regions.heads import final_nodes
from onnxq.planner.float_regions.masks import masking_nodes

REGIONS: tuple[Callable[[ir.Graph], Mapping[ir.Node, str]], ...] = (
    final_nodes,
    masking_nodes,
    angle_nodes,
    dividing_nodes,
)
"""If a node is in several, the first gives the reason."""
