"""Plan a draft again with some nodes in wider formats; everything else stays unchanged."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from onnxq.algorithms.mixed_precision.steps import Precision, Steps, float_nodes, widest_precision
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics, weight_params
from onnxq.core.config import QuantConfig
from onnxq.core.overrides import written
from onnxq.core.plan import Group, QuantParams, QuantPlan, QuantSpec
from onnxq.graph.nodes import constant_value, name_of
from onnxq.graph.operators import WEIGHTED
from onnxq.graph.walks import clips_after
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

CLOSED_FORMS = ("rounding", "bias")
"""The fast corrections, which are repeated for wider weights; they only change weights and biases."""

REASON = "kept in float to reach the goal"


@dataclass(frozen=True)
class Replanner:
    """Makes variants of a draft with some nodes in wider formats.

    Attributes:
        draft: the draft with every node in its narrowest format.
        context: the options that the draft was planned with, and samples to observe tensors of unknown range.
        corrections: the names of the corrections for wider weights, some of `CLOSED_FORMS`.
    """

    draft: Draft
    context: CorrectionContext
    corrections: Sequence[str] = ()

    def __call__(self, steps: Steps) -> Draft:
        """Return the draft after ``steps``.

        Layers that do not change keep their ranges, weights and biases. Layers that become float get the
        weights and biases of the float model. Layers with wider weights get those that `corrections` give if
        all weights have the wider format.

        Raises:
            CalibrationError: a tensor that now needs a range cannot be observed.
        """
        if not steps:
            return self.draft
        plan = self._solved(steps)
        return replace(self.draft, plan=plan, model=self._model(plan))

    @cached_property
    def plan(self) -> Callable[[Steps], QuantPlan]:
        """A function that returns the plan after given steps, without parameters.

        The last plans are cached, because callers need the same plan several times in a row.
        """
        return lru_cache(maxsize=4)(self._plan)

    def _plan(self, steps: Steps) -> QuantPlan:
        floats = {name for node in float_nodes(steps) for name in (node, *self._fused(node))}
        options = self._options(steps, floats)
        plan = make_plan(self.draft.reference, get_target(self.context.config.target), options)
        told = {
            name: replace(node, reason=REASON) if name in floats else node
            for name, node in plan.float_nodes.items()
        }
        return replace(plan, float_nodes=told)

    def _fused(self, name: str) -> Iterator[str]:
        """Yield the Relu and Clip that are fused with a node; alone they would be quantized themselves."""
        planned, rules = self.draft.plan.integer_nodes, get_target(self.draft.plan.target).rules
        for value in self._nodes[name].outputs:
            for clip in clips_after(value):
                if clip.name not in planned and clip.op_type in rules:
                    yield name_of(clip)

    @cached_property
    def _nodes(self) -> Mapping[str, ir.Node]:
        return {name_of(node): node for node in self.draft.reference.graph}

    def _options(self, steps: Steps, floats: Collection[str]) -> QuantConfig:
        """Return the options with the exclusions and overrides that give nodes the formats of ``steps``."""
        exclude = tuple(map(escape, sorted(floats)))
        override = tuple(
            written(escape(name), {part: form.name.lower() for part, form in parts.items()})
            for name, parts in widest_precision(steps).items()
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
        """Apply `corrections` to the model in which all weights that support the format ``form`` have it."""
        exact, plan = self.draft.reference, self.draft.plan
        tiers = widenings(exact, plan, dict.fromkeys(plan.groups, 0.0))
        nodes = [node for tier in tiers for one in tier if one.form == form for node in one.nodes]
        wide = self._solved(Steps(Precision(node, form) for node in nodes))
        return correct(replace(self.draft, plan=wide, model=exact), self.corrections, self.context)[0].model

    def _params(self, plan: QuantPlan) -> Mapping[str, QuantParams]:
        old = self.draft.plan
        known = {name: old.params[name] for name, group in plan.groups.items() if old.has_range_of(group)}
        new = {name: group for name, group in plan.groups.items() if name not in known}
        weights = {name: self._weight_params(group) for name, group in new.items() if group.constant}
        # Corrections have used the scales of unchanged weights: these are raised for biases only where an
        # input has another scale, with which a bias might not fit into int32.
        biases = tuple(bias for bias in plan.biases if {bias.weight_group, bias.input_group} & new.keys())
        self._observe(replace(plan, groups=new).observed)
        return compute_qparams(
            self.draft.reference, replace(plan, biases=biases), self._range_params, {**known, **weights}
        ).params

    @cached_property
    def _range_params(self) -> Callable[[Group], QuantParams]:
        return cache(from_statistics(self._statistics, calibrator(self.context.config)))

    @cached_property
    def _weight_params(self) -> Callable[[Group], QuantParams]:
        return cache(partial(weight_params, self.draft.reference))

    @cached_property
    def _statistics(self) -> dict[str, TensorStatistics]:
        """The statistics that are known so far, by tensor name; at first those of the draft."""
        return dict(self.draft.statistics)

    def _observe(self, tensors: Sequence[str]) -> None:
        """Collect the statistics of tensors that are not known yet; mostly there are none."""
        context = self.context
        missing = [name for name in tensors if name not in self._statistics]
        if not missing:
            return
        found = collect(
            self.draft.reference,
            missing,
            context.fit,
            every_element=self.context.config.every_element,
            providers=context.config.providers,
            threads=context.config.threads,
            on_bad=context.on_bad,
        )
        self._statistics.update(found)


def _changed(draft: Draft, plan: QuantPlan) -> Iterator[tuple[ir.Node, QuantSpec | None]]:
    """Yield the layers whose weight format differs between ``draft`` and ``plan``, and that of ``plan``.

    The format is None for layers in float.
    """
    old, new = ({(p.consumer, p.input_index): p.spec for p in one.points} for one in (draft.plan, plan))
    for node in draft.model.graph:
        if node.op_type in WEIGHTED:
            place = name_of(node), WEIGHTED[node.op_type].weight
            if old.get(place) != new.get(place):
                yield node, new.get(place)


def _constants(node: ir.Node) -> Iterator[str]:
    """Yield the names of the constants of a layer that corrections may have changed."""
    weight, bias = node.inputs[WEIGHTED[node.op_type].weight], bias_of(node)
    if weight is not None:
        yield name_of(weight)
    if bias is not None:
        yield bias.tensor
