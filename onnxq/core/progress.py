"""The interface for progress reports."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on: with the stage, the samples done, and the total number if known."""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None: ...  # noqa: D102


def silent(stage: str, done: int = 0, total: int | None = None) -> None:
    """Report nothing.

    Args:
        stage: description of the current work.
        done: number of samples done.
        total: number of all samples, if known.
    """
