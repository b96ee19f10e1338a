"""A draft with some of its nodes in wider forms: planned anew, and else as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from glob import escape

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import collect
from calibrators.statistics import TensorStatistics
from onnxq.algorithms.context import CorrectionContext
from onnxq.algorithms.corrections import correct
from onnxq.algorithms.draft import Draft, with_constants
from onnxq.algorithms.layers.biases import bias_of
from onnxq.algorithms.mixed_precision.priorities import widenings
from onnxq.algorithms.mixed_precision.steps import FLOAT, Precision, Steps, widest_precision
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics, weight_params
from onnxq.core.config import QuantConfig
from onnxq.core.overrides import written
from onnxq.core.plan import Group, QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import constant_value, name_of
from onnxq.graph.operators import WEIGHTED
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

CLOSED_FORMS = ("rounding", "bias")
"""The corrections that are quickly made for weights of many bits; they change weights and biases alone."""

REASON = "it stays float so that the goal is reached"


@dataclass(frozen=True)
class Replanner:
    """Makes such drafts of one.

    Attributes:
        draft: with every node in its narrowest form.
        context: to observe tensors that no range is known of; its options are those it was planned with.
        corrections: names of those that weights which get wider have, some of `CLOSED_FORMS`.
    """

    draft: Draft
    context: CorrectionContext
    corrections: Sequence[str] = ()

    def __call__(self, steps: Steps) -> Draft:
        """``draft`` with its nodes as high on their ladders as ``steps`` lead.

        What stays as it was keeps its ranges, weights and biases. Layers that become float have the exact
        weights and biases again; those whose weights get wider have them as `corrections` would have left
        them, had all weights been as wide from the beginning.

        Raises:
            CalibrationError: a tensor that now needs a range cannot be observed.
        """
        if not steps:
            return self.draft
        plan = self._solved(steps)
        return replace(self.draft, plan=plan, model=self._model(plan))

    @cached_property
    def plan(self) -> Callable[[Steps], QuantPlan]:
        """Steps -> the plan after them, without parameters; it is asked for several times in a row."""
        return lru_cache(maxsize=2)(self._plan)

    def _plan(self, steps: Steps) -> QuantPlan:
        forms = widest_precision(steps)
        plan = make_plan(self.draft.reference, get_target(self.context.config.target), self._options(forms))
        told = {
            name: replace(node, reason=REASON) if forms.get(name) == FLOAT else node
            for name, node in plan.float_nodes.items()
        }
        return replace(plan, float_nodes=told)

    def _options(self, forms: Mapping[str, ir.DataType]) -> QuantConfig:
        """`config` with what leads to these ``forms`` of nodes."""
        exclude = tuple(escape(name) for name, form in forms.items() if form == FLOAT)
        override = tuple(
            written(escape(name), {"weight": form.name.lower()})
            for name, form in forms.items()
            if form != FLOAT
        )
        more = {
            "exclude": (*self.context.config.exclude, *exclude),
            "override": (*self.context.config.override, *override),
        }
        return self.context.config.model_copy(update=more)

    def _solved(self, steps: Steps) -> QuantPlan:
        plan = self.plan(steps)
        return plan.with_params(self._params(plan))

    def _model(self, plan: QuantPlan) -> ir.Model:
        arrays: dict[str, NDArray[np.generic]] = {}
        for layer, spec in _changed(self.draft, plan):
            source = self.draft.reference if spec is None else self._corrected(spec.dtype)
            for name in _constants(layer):
                values = constant_value(source.graph.initializers.get(name))
                if values is not None:
                    arrays[name] = values
        return with_constants(self.draft.model, arrays)

    @cached_property
    def _corrected(self) -> Callable[[ir.DataType], ir.Model]:
        return cache(self._correct)

    def _correct(self, form: ir.DataType) -> ir.Model:
        """The model as `corrections` leave it where all weights that can have ``form`` have it."""
        exact, plan = self.draft.reference, self.draft.plan
        rungs = widenings(exact, plan, dict.fromkeys(plan.groups, 0.0))
        nodes = [node for rung in rungs for one in rung if one.form == form for node in one.nodes]
        wide = self._solved(Steps(Precision(node, form) for node in nodes))
        return correct(replace(self.draft, plan=wide, model=exact), self.corrections, self.context)[0].model

    def _params(self, plan: QuantPlan) -> Mapping[str, QuantParams]:
        old = self.draft.plan
        known = {name: old.params[name] for name, group in plan.groups.items() if old.has_range_of(group)}
        new = {name: group for name, group in plan.groups.items() if name not in known}
        weights = {name: self._weight_params(group) for name, group in new.items() if group.constant}
        # Known weights are left as they are: corrections have chosen them for just these scales.
        biases = tuple(bias for bias in plan.biases if bias.weight_group in new)
        source = from_statistics(
            self._statistics(replace(plan, groups=new).observed), calibrator(self.context.config)
        )
        return compute_qparams(
            self.draft.reference, replace(plan, biases=biases), source, {**known, **weights}
        ).params

    @cached_property
    def _weight_params(self) -> Callable[[Group], QuantParams]:
        return cache(partial(weight_params, self.draft.reference))

    def _statistics(self, tensors: Sequence[str]) -> Mapping[str, TensorStatistics]:
        """Of tensors that no range is known of, mostly none."""
        context = self.context
        if not tensors:
            return {}
        return collect(
            self.draft.reference,
            tensors,
            context.fit,
            every_element=self.context.config.every_element,
            providers=context.config.providers,
            threads=context.config.threads,
            on_bad=context.on_bad,
        )


def _changed(draft: Draft, plan: QuantPlan) -> Iterator[tuple[ir.Node, QuantSpec | None]]:
    """The layers whose weights ``plan`` has in other formats than ``draft``, and in which; None: in float."""
    old, new = ({(p.consumer, p.input_index): p.spec for p in one.points} for one in (draft.plan, plan))
    for node in draft.model.graph:
        if node.op_type in WEIGHTED:
            place = name_of(node), WEIGHTED[node.op_type].weight
            if old.get(place) != new.get(place):
                yield node, new.get(place)


def _constants(node: ir.Node) -> Iterator[str]:
    """What corrections may have changed."""
    weight, bias = node.inputs[WEIGHTED[node.op_type].weight], bias_of(node)
    if weight is not None:
        yield name_of(weight)
    if bias is not None:
        yield bias.tensor
