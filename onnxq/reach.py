"""A corrected draft -> one that reaches the goal, if there is one."""

from __future__ import annotations

from onnxq.algorithms.draft import Draft
from onnxq.algorithms.search import Search, search
from onnxq.config import QuantConfig
from onnxq.correction import to_try, workbench
from onnxq.errors import ConfigError
from onnxq.evaluate import Judge
from onnxq.goal import Goal, parse_goal
from onnxq.progress import Progress
from onnxq.samples import Data, Samples


def chosen_goal(goal: Goal | str | None, data: Data | None, config: QuantConfig) -> Goal | None:
    """``goal``, or else that of ``config``.

    Raises:
        ConfigError: it is malformed, or there are no samples to measure it on.
    """
    goal = config.goal if goal is None else goal
    if isinstance(goal, str):
        goal = parse_goal(goal)
    if goal is not None and data is None:
        raise ConfigError(f"the goal {goal} can only be measured on real samples: give data (--data)")
    return goal


def reach(
    draft: Draft, goal: Goal | None, samples: Samples, judge: Judge, config: QuantConfig, progress: Progress
) -> tuple[Draft, Search | None]:
    """``draft`` with what must be wider or float for ``goal``, and how that was found; see `search`.

    There is nothing to search where no goal is given, or where nothing is in integers.
    """
    if goal is None or not draft.plan.points:
        return draft, None
    bench = workbench(draft.exact, samples, judge, config, progress)
    return search(draft, goal, bench, config, to_try(samples, config))
