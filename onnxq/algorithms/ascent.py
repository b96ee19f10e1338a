"""All steps up from a plan, in stages: weights wider, rung by rung, and in the end float.

Wider weights cost bytes, float costs time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxq.algorithms.candidates import candidates
from onnxq.algorithms.ladder import Step, Steps, floated
from onnxq.algorithms.widening import widenings
from onnxq.plan import QuantPlan

Stage = Sequence[Steps]
"""Steps that are taken together, those that are worth most first."""


def stages(model: ir.Model, plan: QuantPlan, noises: Mapping[str, float]) -> list[Stage]:
    """All stages, the cheap ones first.

    Args:
        model: the model of ``plan``.
        plan: what is quantized.
        noises: of its groups, what each alone does to the outputs (noise over signal).
    """
    rungs = widenings(model, plan, noises)
    left = {**noises, **{one.group: one.left for rung in rungs for one in rung}}
    wider: list[Stage] = [
        [Steps(Step(node, one.form) for node in one.nodes) for one in rung] for rung in rungs
    ]
    return [*wider, [floated(one.nodes) for one in candidates(model, plan, left)]]
