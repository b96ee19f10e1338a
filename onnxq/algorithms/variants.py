"""A draft with some of its nodes in wider forms: planned anew, and else as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from glob import escape

import onnx_ir as ir

from calibrators.collect import collect
from calibrators.tensor_statistics import TensorStatistics
from onnxq.algorithms.biases import bias_of
from onnxq.algorithms.draft import Draft, with_constants
from onnxq.algorithms.ladder import FLOAT, Steps, highest
from onnxq.algorithms.workbench import Workbench
from onnxq.config import QuantConfig
from onnxq.graph import constant_value
from onnxq.operators import WEIGHTED
from onnxq.override import written
from onnxq.plan import Group, QuantParams, QuantPlan
from onnxq.planner import make_plan
from onnxq.ranges import calibrator, from_statistics, solve
from onnxq.targets import get_target

REASON = "it stays float so that the goal is reached"


@dataclass(frozen=True)
class Variants:
    """Makes such drafts of one.

    Attributes:
        draft: with every node in its narrowest form.
        bench: to observe tensors that no range is known of.
        config: how it was planned.
    """

    draft: Draft
    bench: Workbench
    config: QuantConfig

    def __call__(self, steps: Steps) -> Draft:
        """``draft`` with its nodes as high on their ladders as ``steps`` lead.

        Ranges, weights and biases of what stays as it was are kept; weights and biases of layers that become
        float, or get other weights, are the exact ones again, and those weights are rounded to nearest.

        Raises:
            CalibrationError: a tensor that now needs a range cannot be observed.
        """
        if not steps:
            return self.draft
        plan = self.plan(steps)
        plan = plan.with_params(self._params(plan))
        return replace(self.draft, plan=plan, model=_restored(self.draft, plan))

    @cached_property
    def plan(self) -> Callable[[Steps], QuantPlan]:
        """Steps -> the plan after them, without parameters; it is asked for several times in a row."""
        return lru_cache(maxsize=2)(self._plan)

    def _plan(self, steps: Steps) -> QuantPlan:
        forms = highest(steps)
        plan = make_plan(self.draft.exact, get_target(self.config.target), self._options(forms))
        told = {
            name: replace(node, reason=REASON) if forms.get(name) == FLOAT else node
            for name, node in plan.floats.items()
        }
        return replace(plan, floats=told)

    def _options(self, forms: Mapping[str, ir.DataType]) -> QuantConfig:
        """`config` with what leads to these ``forms`` of nodes."""
        exclude = tuple(escape(name) for name, form in forms.items() if form == FLOAT)
        override = tuple(
            written(escape(name), {"weight": form.name.lower()})
            for name, form in forms.items()
            if form != FLOAT
        )
        more = {"exclude": (*self.config.exclude, *exclude), "override": (*self.config.override, *override)}
        return self.config.model_copy(update=more)

    def _params(self, plan: QuantPlan) -> Mapping[str, QuantParams]:
        old = self.draft.plan
        known = {group.name: old.params[group.name] for group in plan.groups.values() if _same(group, old)}
        new = {name: group for name, group in plan.groups.items() if name not in known}
        # Known weights are left as they are: corrections have chosen them for just these scales.
        biases = tuple(bias for bias in plan.biases if bias.weight_group in new)
        source = from_statistics(
            self._statistics(replace(plan, groups=new).observed), calibrator(self.config)
        )
        return solve(self.draft.exact, replace(plan, biases=biases), source, known).params

    def _statistics(self, tensors: Sequence[str]) -> Mapping[str, TensorStatistics]:
        """Of tensors that no range is known of, mostly none."""
        bench = self.bench
        if not tensors:
            return {}
        return collect(
            self.draft.exact,
            tensors,
            bench.fit,
            every_element=self.config.every_element,
            providers=bench.providers,
            threads=bench.threads,
            on_bad=bench.on_bad,
        )


def _same(group: Group, plan: QuantPlan) -> bool:
    """Whether ``plan`` has a group with just this range."""
    other = plan.groups.get(group.name)
    if other is None or not (group.constant and other.constant):
        return other == group
    return other.spec == group.spec


def _restored(draft: Draft, plan: QuantPlan) -> ir.Model:
    """``draft.model`` with exact weights and biases in layers whose weights ``plan`` has in other forms."""
    old, new = ({(p.consumer, p.input_index): p.spec for p in one.points} for one in (draft.plan, plan))
    weights = {node: (node.name or "", WEIGHTED[node.op_type].weight) for node in _weighted(draft.model)}
    layers = [node for node, place in weights.items() if old.get(place) != new.get(place)]
    exact = draft.exact.graph.initializers
    names = dict.fromkeys(name for node in layers for name in _constants(node) if name in exact)
    values = {name: constant_value(exact[name]) for name in names}
    return with_constants(draft.model, {name: array for name, array in values.items() if array is not None})


def _weighted(model: ir.Model) -> Iterator[ir.Node]:
    return (node for node in model.graph if node.op_type in WEIGHTED)


def _constants(node: ir.Node) -> Iterator[str]:
    """What corrections may have changed."""
    weight, bias = node.inputs[WEIGHTED[node.op_type].weight], bias_of(node)
    if weight is not None:
        yield weight.name or ""
    if bias is not None:
        yield bias.tensor
