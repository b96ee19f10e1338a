"""Quantization points by their place: those of one stage of the model share all the rest behind it."""

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
"""To open a session takes as long as some runs: few pieces are large, and of few rests each is used often."""


@dataclass(frozen=True)
class Piece:
    """What runs for one group alone.

    Attributes:
        group: the group that is quantized in it.
        part: what depends on that, up to the end of the stage.
        outputs: which outputs of the whole model it gives, position -> name in ``part``.
    """

    group: Group
    part: Subgraph
    outputs: Mapping[int, str]


@dataclass(frozen=True)
class Stage:
    """Attributes:
    pieces: of all its groups.
    rest: all behind the stage; None at the end of the model.
    outputs: which outputs of the whole model ``rest`` gives, position -> name.
    """

    pieces: tuple[Piece, ...]
    rest: Subgraph | None
    outputs: Mapping[int, str]

    @property
    def feeds(self) -> set[str]:
        """The tensors of the float model that are needed to run it."""
        rest = self.rest.feeds if self.rest else ()
        return {*rest, *(name for piece in self.pieces for name in piece.part.feeds)}


def stages(draft: Draft, groups: Iterable[Group]) -> Iterator[Stage]:
    """The ``groups`` of ``draft.plan``, in stages; models that cannot be cut are one, of whole models."""
    cuttable = is_partitionable(draft.reference)
    ends: dict[int, list[Group]] = {}
    places = _Places(draft)
    for group in groups:
        ends.setdefault(places.end_of_stage(group) if cuttable else places.count, []).append(group)
    for end, members in sorted(ends.items()):
        rest = rest_of(draft.reference, end)
        pieces = tuple(_piece(draft, group, rest, cuttable=cuttable) for group in members)
        yield Stage(pieces, rest, _outputs(draft.reference, rest))


def _piece(draft: Draft, group: Group, rest: Subgraph | None, *, cuttable: bool) -> Piece:
    alone = quantize_alone(draft, group)
    part = piece_before(alone.model, alone.seeds, rest) if cuttable else whole(alone.model)
    return Piece(group, part, _outputs(alone.model, part))


def _outputs(model: ir.Model, part: Subgraph | None) -> Mapping[int, str]:
    """The outputs of ``model`` that ``part`` gives."""
    gives = set(part.gives) if part else set()
    return {i: name_of(v) for i, v in enumerate(model.graph.outputs) if v.name in gives}


class _Places:
    """Where nodes stand in the order of the graph.

    Attributes:
        count: how many nodes there are.
    """

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._places = {name_of(node): place for place, node in enumerate(draft.reference.graph)}
        self._makers = {v.name: name_of(node) for node in draft.reference.graph for v in node.outputs}
        self.count = len(self._places)

    def end_of_stage(self, group: Group) -> int:
        """The end of the stage in which the last node changes that reads ``group``."""
        points = [point for point in self._draft.plan.points if point.group == group.name]
        holders = [bias.holder for bias in biases_with(self._draft, points)] if group.constant else []
        last = max([*map(self._place, points), *(self._places[name] for name in holders)])
        size = math.ceil(self.count / STAGES)
        return min(math.ceil((last + 1) / size) * size, self.count)

    def _place(self, point: QuantPoint) -> int:
        if point.consumer != GRAPH_OUTPUT:
            return self._places[point.consumer]
        return self._places.get(self._makers.get(point.tensor, ""), 0)
