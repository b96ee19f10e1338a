"""AdaRound: layer after layer, weights rounded so that the layer gives what the float one gives.

How one layer learns is in `onnxq.algorithms.soft_rounding`; what from, in `onnxq.algorithms.layer_tasks`.
Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from calibrators.collect import processors
from onnxq.algorithms.biases import bias_of
from onnxq.algorithms.draft import Draft
from onnxq.algorithms.layer_tasks import aim_bytes, aims, task
from onnxq.algorithms.layers import Layer, in_parts, weights, weights_of, with_own_weights
from onnxq.algorithms.soft_rounding import Task, check_torch, learn
from onnxq.algorithms.workbench import Workbench

Floats = NDArray[np.float32]

AIM_BYTES = 2**28
"""Of the aims of all layers that are taken in one pass over the samples; a single layer may take more."""

STRETCHES = 25
CHECK_EVERY = 5
"""The rows of a layer are cut into so many stretches; every fifth is not learned from, but decides whether
to keep what was learned."""

OVERHEAD = 2**14
"""What an iteration costs besides the weights, in weights."""


def learn_rounding(draft: Draft, bench: Workbench) -> Draft | None:
    """Learn how the weights of every layer of ``draft`` are rounded, and its bias, from how they are now on.

    Layers share ``bench.time_limit`` by their size. The same samples, seed and number of threads give the
    same bytes where it cuts nothing short; where it does, they depend on the machine too.

    Raises:
        ConfigError: PyTorch is not installed.
    """
    check_torch()
    found = with_own_weights(draft.exact, draft.plan)
    clock = _Clock(time.monotonic() + bench.time_limit, sum(map(_cost, found)))
    changed = draft
    for part in in_parts(found, aim_bytes, AIM_BYTES):
        if clock.left <= 0:
            break
        for layer, aim in zip(part, aims(draft.exact, part, bench), strict=True):
            if clock.left > 0:
                bench.progress("AdaRound", found.index(layer), len(found))
                changed = _with_learned(changed, layer, aim, clock.share(_cost(layer)), bench)
    return changed if changed is not draft else None


def _with_learned(draft: Draft, layer: Layer, aim: Floats, seconds: float, bench: Workbench) -> Draft:
    """``draft`` with what one layer learned, if it holds on rows that it was not learned from."""
    fit, check = _halves(task(draft, layer, aim, bench))
    if check.rows.shape[1] == 0:
        return draft
    learned = learn(fit, seconds, bench.seed, bench.threads or processors())
    if not replace(check, levels=learned.levels, bias=learned.bias).error() < check.error():
        return draft
    node = draft.model.graph.node(layer.name)
    values, bias = weights_of(node), bias_of(node)
    assert values is not None
    arrays = {layer.weight.tensor: weights(node, learned.levels * learned.scale, values.shape)}
    if bias is not None:
        arrays[bias.tensor] = learned.bias.reshape(bias.values.shape)
    return draft.with_constants(arrays)


@dataclass
class _Clock:
    """Shares out the time that is left, by what there is left to do."""

    deadline: float
    to_do: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def share(self, cost: float) -> float:
        """Seconds for what costs so much, which then counts as done."""
        seconds = self.left * cost / self.to_do
        self.to_do -= cost
        return seconds


def _cost(layer: Layer) -> float:
    return math.prod(layer.shape) + OVERHEAD


def _halves(whole: Task) -> tuple[Task, Task]:
    """Rows to learn from, and rows to check with: whole stretches, because neighbours are alike."""
    count = whole.rows.shape[1]
    stretch = np.arange(count) * min(STRETCHES, count) // max(count, 1)
    held = stretch % CHECK_EVERY == CHECK_EVERY - 1
    fit, check = (
        replace(whole, rows=whole.rows[:, part], wanted=whole.wanted[:, part]) for part in (~held, held)
    )
    return fit, check
