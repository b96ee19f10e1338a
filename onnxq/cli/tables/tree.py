"""Render an inspection as a coloured tree of regions and fused groups; repeated patterns appear once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from re import sub
from typing import Generic, TypeVar

from rich.text import Text
from rich.tree import Tree

from onnxq.cli.exit_codes import printable
from onnxq.pipelines.inspection import FusedGroup, Inspection, Runs

_Item = TypeVar("_Item")

_STYLES: Mapping[Runs, tuple[str, str]] = {
    "integers": ("green", "integers"),
    "float": ("yellow", "float"),
    "neighbours": ("cyan", "the type of its neighbours"),
}
"""What a group runs in -> its colour and its name."""

LONGEST = 64
"""The most items of a repeated pattern: nobody would recognize a longer one."""


@dataclass(frozen=True)
class Repeated(Generic[_Item]):
    """A pattern that occurs ``times`` times in a row; ``items`` is its first occurrence."""

    times: int
    items: tuple[_Item, ...]


def folded(items: Sequence[_Item], look: Callable[[_Item], Hashable]) -> list[Repeated[_Item]]:
    """Replace consecutive repetitions of a pattern in ``items`` by one occurrence and a count.

    At each place the pattern that covers the most items is chosen; of several, the shortest one.
    ``look`` gives what must be equal for two items to count as the same.
    """
    looks = [look(item) for item in items]
    found: list[Repeated[_Item]] = []
    at = 0
    while at < len(items):
        size, times = _pattern(looks, at)
        found.append(Repeated(times, tuple(items[at : at + size])))
        at += size * times
    return found


def _pattern(looks: Sequence[Hashable], at: int) -> tuple[int, int]:
    """Find the length and the number of repetitions of the pattern that begins at ``at``."""
    best = 1, 1
    for size in range(1, min(LONGEST, (len(looks) - at) // 2) + 1):
        times, first = 1, looks[at : at + size]
        while looks[at + times * size : at + (times + 1) * size] == first:
            times += 1
        if times > 1 and size * times > best[0] * best[1]:
            best = size, times
    return best


def tree(inspection: Inspection, *, every_group: bool = False) -> Tree:
    """Make the tree to print; with ``every_group`` repetitions are printed too."""
    root = Tree(Text(printable(inspection.title), style="bold"))
    regions = list(inspection.regions)
    for repeated in _maybe_folded(regions, _look_of_region, every_group):
        branch = root if repeated.times == 1 else root.add(_times(repeated))
        for runs, groups in repeated.items:
            _add_region(branch, runs, groups, every_group)
    return root


def counts(inspection: Inspection) -> str:
    """Describe how many groups run in integers, in float, and in the type of their neighbours."""
    told = f"fused groups: {inspection.count('integers')} in integers, {inspection.count('float')} in float"
    neighbours = inspection.count("neighbours")
    return f"{told}, {neighbours} in the type of their neighbours" if neighbours else told


def _maybe_folded(
    items: Sequence[_Item], look: Callable[[_Item], Hashable], every: bool
) -> Sequence[Repeated[_Item]]:
    return [Repeated(1, (item,)) for item in items] if every else folded(items, look)


def _add_region(branch: Tree, runs: Runs, groups: Sequence[FusedGroup], every_group: bool) -> None:
    colour, words = _STYLES[runs]
    region = branch.add(Text(words, style=f"bold {colour}"))
    for repeated in _maybe_folded(groups, _look_of_group, every_group):
        place = region if repeated.times == 1 else region.add(_times(repeated))
        for group in repeated.items:
            place.add(_line(group, colour))


def _line(group: FusedGroup, colour: str) -> Text:
    (name, _), *_ = group.nodes
    told = f": {group.told}" if group.told else ""
    texts = map(printable, (" + ".join(group.operators), f"  {name}", told))
    return Text.assemble(*zip(texts, (colour, "", "dim"), strict=True))


def _times(repeated: Repeated[_Item]) -> Text:
    return Text(f"{repeated.times} times, the first of them:", style="italic")


def _look_of_region(region: tuple[Runs, Sequence[FusedGroup]]) -> Hashable:
    runs, groups = region
    return runs, tuple(map(_look_of_group, groups))


def _look_of_group(group: FusedGroup) -> Hashable:
    return group.runs, group.operators, without_names(group.told)


def without_names(reason: str) -> str:
    """Remove names and times from a reason, to group nodes: "its input 'x' ..." -> "its input … ..."."""
    return sub(r"'[^']*'|[\d.]+(?= ms)", "…", reason)
