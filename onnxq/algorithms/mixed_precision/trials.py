"""The log of a search: the models that were measured and their results, optionally stored in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calibrators.atomic import NOT_PLAIN, drafts, is_special
from onnxq.core.errors import ConfigError

VERSION = 3
"""The version of the file format."""

READ = frozenset({2, VERSION})
"""The versions that are read; version 2 had no wider activations, so its trials have none."""

Key = tuple[frozenset[str], frozenset[tuple[str, str]], frozenset[tuple[str, str]]]


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What differs in a model from the one that a search began with.

    Attributes:
        floats: the nodes that were kept in float, and those that became float as a consequence.
        widened: the nodes with wider weights -> the type of these.
        wide_activations: the nodes with wider activations -> the type of these.
    """

    floats: tuple[str, ...]
    widened: Mapping[str, str]
    wide_activations: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """The changed nodes, which identify the model within a search."""
        return (
            frozenset(self.floats),
            frozenset(self.widened.items()),
            frozenset(self.wide_activations.items()),
        )


@dataclass(frozen=True, kw_only=True)
class TrialResult(Changes):
    """The result of one model.

    Attributes:
        value: the value of the goal's metric; for ``agreement`` a conservative estimate (see `agreement`).
        sqnr: the SQNR of the worst output on held-out samples, in dB.
        agreement: the counted share of equal decisions on held-out samples; None if no output is a decision.
        size: the number of bytes of the constants in the file.
        speed: the speed-up over the float model; None if it was not measured.
    """

    value: float
    sqnr: float
    agreement: float | None
    size: int
    speed: float | None = None

    @property
    def cost(self) -> tuple[int, int, int]:
        """The cost for comparisons: float nodes, nodes with wider activations, bytes if weights are wider."""
        return len(self.floats), len(self.wide_activations), self.size if self.widened else 0


@dataclass
class SearchLog:
    """The attempts of a search, and the noise of each group.

    Attributes:
        key: identifies the model, the options, the data and the goal.
        file: the file that stores the log; None: it is not stored.
        attempts: the results by their changed nodes.
        noises: the noise over signal at the outputs, for each group quantized alone.
    """

    key: str
    file: Path | None
    attempts: dict[Key, TrialResult] = field(default_factory=dict)
    noises: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, key: str, file: Path | None) -> SearchLog:
        """Read the log from ``file``; the log is empty if the file does not exist yet.

        Raises:
            ConfigError: the file is not a log, or it belongs to another search.
        """
        if file is None or not file.exists():
            return cls(key, file)
        content = _read(file)
        if content["key"] != key:
            raise ConfigError(
                f"{file} belongs to a search with another model, other options, other data or another goal: "
                "name another file, or delete it"
            )
        return cls(key, file, _by_key(content["attempts"]), content["noises"])

    def add(self, attempt: TrialResult) -> None:
        """Add ``attempt`` and save the log."""
        self.attempts[attempt.key] = attempt
        self.save()

    def save(self) -> None:
        """Write the log to its file, if it has one, atomically."""
        if self.file is None:
            return
        attempts = [asdict(attempt) for attempt in self.attempts.values()]
        content = {"version": VERSION, "key": self.key, "noises": dict(self.noises), "attempts": attempts}
        with drafts([self.file]) as paths:
            paths[self.file].write_text(json.dumps(content, indent=1), "utf-8")


def _read(file: Path) -> dict[str, Any]:
    if is_special(file):
        raise ConfigError(f"{file} {NOT_PLAIN}: name another file")
    try:
        content = json.loads(file.read_text("utf-8"))
        if content.keys() - {"version"} == {"key", "noises", "attempts"}:
            return _of_this_version(dict(content), file)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{file} does not hold the attempts of a search: name another file") from error
    raise ConfigError(f"{file} does not hold the attempts of a search: name another file")


def _of_this_version(content: dict[str, Any], file: Path) -> dict[str, Any]:
    if content.get("version") not in READ:
        raise ConfigError(
            f"{file} holds the attempts of a search by another version of onnxq: name another file, or "
            "delete it"
        )
    return content


def _by_key(attempts: list[dict[str, Any]]) -> dict[Key, TrialResult]:
    found = [TrialResult(**{**attempt, "floats": tuple(attempt["floats"])}) for attempt in attempts]
    return {attempt.key: attempt for attempt in found}
