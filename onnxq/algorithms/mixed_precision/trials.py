"""What was tried on the way to a goal, and what it gave; remembered in a file, it need not be tried again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibrators.atomic import drafts
from onnxq.core.errors import ConfigError

VERSION = 2
"""Of the file's form."""

Key = tuple[frozenset[str], frozenset[tuple[str, str]]]


@dataclass(frozen=True)
class TrialResult:
    """One model.

    Attributes:
        floats: the nodes that were kept float, and those that became so with them.
        widened: the nodes with weights of more bits, and the type of these.
        value: what the goal is about; for ``agreement``, what can be promised (see `agreement`).
        sqnr: dB, of the worst output on held-out samples.
        agreement: the share of equal decisions counted on them; None if nothing is decided.
        size: bytes that the constants take in the file.
        speed: times as fast as the float model; None if it was not measured.
    """

    floats: tuple[str, ...]
    widened: Mapping[str, str]
    value: float
    sqnr: float
    agreement: float | None
    size: int
    speed: float | None = None

    @property
    def key(self) -> Key:
        """What was changed."""
        return frozenset(self.floats), frozenset(self.widened.items())

    @property
    def cost(self) -> tuple[int, int]:
        """What had to be given up: float nodes are worse than bytes; these count where weights got wider."""
        return len(self.floats), self.size if self.widened else 0


@dataclass
class SearchLog:
    """Attempts by what was changed, and the noise of each group of points.

    Attributes:
        key: what they belong to: model, options, data and measure.
        file: where they are kept; None: nowhere.
    """

    key: str
    file: Path | None
    attempts: dict[Key, TrialResult] = field(default_factory=dict)
    noises: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, key: str, file: Path | None) -> SearchLog:
        """What ``file`` remembers; nothing if there is none yet.

        Raises:
            ConfigError: the file is something else, or belongs to another search.
        """
        if file is None or not file.exists():
            return cls(key, file)
        content = _read(file)
        if content["key"] != key:
            raise ConfigError(
                f"{file} is of a search for another model, other options, data or another goal: "
                "name another file, or delete it"
            )
        return cls(key, file, _by_key(content["attempts"]), content["noises"])

    def add(self, attempt: TrialResult) -> None:
        """Remember ``attempt``."""
        self.attempts[attempt.key] = attempt
        self.save()

    def save(self) -> None:
        """Write the file, if there is to be one, whole or not at all."""
        if self.file is None:
            return
        attempts = [asdict(attempt) for attempt in self.attempts.values()]
        content = {"version": VERSION, "key": self.key, "noises": dict(self.noises), "attempts": attempts}
        with drafts([self.file]) as paths:
            paths[self.file].write_text(json.dumps(content, indent=1), "utf-8")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.keys() - {"version"} == {"key", "noises", "attempts"}:
            return _of_this_version(dict(content), file)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} does not hold the attempts of a search: name another file") from error
    raise ConfigError(f"{file} does not hold the attempts of a search: name another file")


def _of_this_version(content: dict[str, Any], file: Path) -> dict[str, Any]:
    if content.get("version") != VERSION:
        raise ConfigError(
            f"{file} holds the attempts of a search by another version of onnxq: name another file, or "
            "delete it"
        )
    return content


def _by_key(attempts: list[dict[str, Any]]) -> dict[Key, TrialResult]:
    found = [TrialResult(**{**attempt, "floats": tuple(attempt["floats"])}) for attempt in attempts]
    return {attempt.key: attempt for attempt in found}
