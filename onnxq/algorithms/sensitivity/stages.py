"""Split a model into stages; the quantization groups of a stage share the rest of the model after it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layers.subgraphs import Subgraph, is_partitionable, piece_before, rest_of, whole
from onnxq.algorithms.sensitivity.single_group import biases_with, quantize_alone
from onnxq.core.plan import GRAPH_OUTPUT, Group, QuantPoint
from onnxq.graph.nodes import name_of

STAGES = 12
"""The largest number of stages.

Opening a session takes as long as several runs. With few stages there are few rests of the model, and each is
used often. With more stages, the pieces are smaller.
"""


@dataclass(frozen=True)
class Piece:
    """The part of a stage that runs for one group.

    Attributes:
        group: the group that is quantized in it.
        part: the nodes that depend on the group, up to the end of the stage.
        outputs: the outputs of the whole model that it gives, position -> name in ``part``.
    """

    group: Group
    part: Subgraph
    outputs: Mapping[int, str]


@dataclass(frozen=True)
class Stage:
    """A stage of the model.

    Attributes:
        pieces: one piece for each group of the stage.
        rest: all nodes after the stage; None at the end of the model.
        outputs: the outputs of the whole model that ``rest`` gives, position -> name.
    """

    pieces: tuple[Piece, ...]
    rest: Subgraph | None
    outputs: Mapping[int, str]

    @property
    def feeds(self) -> set[str]:
        """The tensors of the float model that are needed to run the stage and the rest after it."""
        rest = self.rest.feeds if self.rest else ()
        return {*rest, *(name for piece in self.pieces for name in piece.part.feeds)}


def stages(draft: Draft, groups: Iterable[Group]) -> Iterator[Stage]:
    """Yield the stages with ``groups`` of ``draft.plan``.

    If the model cannot be partitioned, there is one stage, and its pieces are whole models.
    """
    cuttable = is_partitionable(draft.reference)
    for end, members in by_stage(draft, groups).items():
        rest = rest_of(draft.reference, end)
        pieces = tuple(_piece(draft, group, rest, cuttable=cuttable) for group in members)
        yield Stage(pieces, rest, _outputs(draft.reference, rest))


def by_stage(draft: Draft, groups: Iterable[Group]) -> dict[int, list[Group]]:
    """Map the end of each stage, as a number of nodes, to its groups; the first stage comes first."""
    places, ends = _Places(draft), dict[int, list[Group]]()
    cuttable = is_partitionable(draft.reference)
    for group in groups:
        ends.setdefault(places.end_of_stage(group) if cuttable else places.count, []).append(group)
    return dict(sorted(ends.items()))


def _piece(draft: Draft, group: Group, rest: Subgraph | None, *, cuttable: bool) -> Piece:
    alone = quantize_alone(draft, group)
    part = piece_before(alone.model, alone.seeds, rest) if cuttable else whole(alone.model)
    return Piece(group, part, _outputs(alone.model, part))


def _outputs(model: ir.Model, part: Subgraph | None) -> Mapping[int, str]:
    """Return the outputs of ``model`` that ``part`` gives, position -> name."""
    gives = set(part.gives) if part else set()
    return {i: name_of(v) for i, v in enumerate(model.graph.outputs) if v.name in gives}


class _Places:
    """The positions of nodes in graph order.

    Attributes:
        count: the number of nodes.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._places = {name_of(node): place for place, node in enumerate(draft.reference.graph)}
        self._makers = {v.name: name_of(node) for node in draft.reference.graph for v in node.outputs}
        self.count = len(self._places)

    def end_of_stage(self, group: Group) -> int:
        """Return the end of the stage with the last consumer of ``group``."""
        points = self._draft.plan.points_of(group.name)
        holders = [bias.holder for bias in biases_with(self._draft, points)] if group.constant else []
        last = max([*map(self._place, points), *(self._places[name] for name in holders)])
        size = math.ceil(self.count / STAGES)
        return min(math.ceil((last + 1) / size) * size, self.count)

    def _place(self, point: QuantPoint) -> int:
        if point.consumer != GRAPH_OUTPUT:
            return self._places[point.consumer]
        return self._places.get(self._makers.get(point.tensor, ""), 0)
