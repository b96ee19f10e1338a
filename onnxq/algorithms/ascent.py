"""All steps up from a plan, in stages: weights wider, rung by rung, and in the end float.

Wider weights cost bytes, float costs time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.algorithms.candidates import Candidate, candidates
from onnxq.algorithms.ladder import Step, Steps, floated
from onnxq.algorithms.widening import Widening, widenings
from onnxq.plan import QuantPlan

TRIFLE = 0.01
"""Of the bytes of a rung: what saves less is not taken back alone. Of many trials on the same samples some
pass by luck, and for a few bytes that is not worth it."""


@dataclass(frozen=True)
class Move:
    """Steps that are taken together.

    Attributes:
        steps: one a node.
        back: what to try to do without later, one after the other; nothing where that would save too little.
    """

    steps: Steps
    back: tuple[Steps, ...]


Stage = Sequence[Move]
"""Those that are worth most first."""


def stages(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[Stage]:
    """All stages, the cheap ones first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    rungs = widenings(model, plan, noises)
    left = {**noises, **{one.group: one.left for rung in rungs for one in rung}}
    return [*map(_wider, rungs), [_float(one) for one in candidates(model, plan, left)]]


def _wider(rung: Sequence[Widening]) -> Stage:
    """Nodes that share weights stay together: else these would be in the file twice."""
    least = TRIFLE * sum(one.cost for one in rung)
    steps = [Steps(Step(node, one.form) for node in one.nodes) for one in rung]
    return [Move(own, (own,) if one.cost >= least else ()) for own, one in zip(steps, rung, strict=True)]


def _float(candidate: Candidate) -> Move:
    """All nodes may be taken back together, or else some of them."""
    steps = floated(candidate.nodes)
    return Move(steps, tuple(dict.fromkeys((steps, *map(Steps, zip(sorted(steps)))))))


def taken(moves: Stage) -> Steps:
    """The steps of all ``moves``."""
    return Steps().union(*(move.steps for move in moves))
