"""How those who wait are told how far the work is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told as work goes on: what is being done, how many samples are done, of how many if known."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None: ...  # noqa: D102


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """The progress of those who do not ask."""
