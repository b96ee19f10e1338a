"""A draft with more of its nodes left float: planned anew, and else as it was."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from glob import escape

import onnx_ir as ir

from calibrators.collect import collect
from calibrators.tensor_statistics import TensorStatistics
from onnxq.algorithms.biases import bias_of
from onnxq.algorithms.draft import Draft, with_constants
from onnxq.algorithms.workbench import Workbench
from onnxq.config import QuantConfig
from onnxq.graph import constant_value
from onnxq.operators import WEIGHTED
from onnxq.plan import Group, QuantParams, QuantPlan
from onnxq.planner import make_plan
from onnxq.ranges import calibrator, from_statistics, solve
from onnxq.targets import get_target

REASON = "it stays float so that the goal is reached"


@dataclass(frozen=True)
class KeepFloat:
    """Makes such drafts of one.

    Attributes:
        draft: with nothing kept float but what its plan leaves float anyway.
        bench: to observe tensors that no range is known of.
        config: how it was planned.
    """

    draft: Draft
    bench: Workbench
    config: QuantConfig

    def __call__(self, nodes: Collection[str]) -> Draft:
        """``draft`` with ``nodes`` float.

        Ranges, weights and biases of what stays in integers are as they were; weights and biases of
        layers that become float are the exact ones again.

        Raises:
            CalibrationError: a tensor that now needs a range cannot be observed.
        """
        if not nodes:
            return self.draft
        plan = self.plan(nodes)
        plan = plan.with_params(self._params(plan))
        return replace(self.draft, plan=plan, model=_restored(self.draft, plan))

    def plan(self, nodes: Collection[str]) -> QuantPlan:
        """The plan with ``nodes`` float, without parameters."""
        exclude = (*self.config.exclude, *map(escape, sorted(nodes)))
        config = self.config.model_copy(update={"exclude": exclude})
        plan = make_plan(self.draft.exact, get_target(self.config.target), config)
        told = {name: replace(f, reason=REASON) if name in nodes else f for name, f in plan.floats.items()}
        return replace(plan, floats=told)

    def _params(self, plan: QuantPlan) -> Mapping[str, QuantParams]:
        old = self.draft.plan
        known = {group.name: old.params[group.name] for group in plan.groups.values() if _same(group, old)}
        new = {name: group for name, group in plan.groups.items() if name not in known}
        part = replace(plan, groups=new, biases=())
        source = from_statistics(self._statistics(part.observed), calibrator(self.config))
        return {**known, **solve(self.draft.exact, part, source).params}

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
    """``draft.model`` with the exact weights and biases of layers that ``plan`` leaves float after all."""
    gone = draft.plan.nodes.keys() - plan.nodes.keys()
    layers = [node for node in draft.model.graph if node.name in gone and node.op_type in WEIGHTED]
    exact = draft.exact.graph.initializers
    names = dict.fromkeys(name for node in layers for name in _constants(node) if name in exact)
    values = {name: constant_value(exact[name]) for name in names}
    return with_constants(draft.model, {name: array for name, array in values.items() if array is not None})


def _constants(node: ir.Node) -> Iterator[str]:
    """What corrections may have changed."""
    weight, bias = node.inputs[WEIGHTED[node.op_type].weight], bias_of(node)
    if weight is not None:
        yield weight.name or ""
    if bias is not None:
        yield bias.tensor
