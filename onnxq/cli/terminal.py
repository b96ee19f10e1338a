"""Print to the console: log lines and warnings on stderr, progress bars on a terminal."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from onnxq.cli.exit_codes import one_line, printable
from onnxq.cli.interrupts import INTERRUPTS
from onnxq.core.progress import Progress

logger = logging.getLogger(__name__)


OURS = ("onnxq", "calibrators")
"""The loggers whose messages the user sees; those of libraries are for their developers."""


PACE_SECONDS = 600
"""Speed is averaged over the last ten minutes: one run of a large model may take a minute."""


_UNFOLDED = 10_000


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise the error again: the command line handles it, while rich would end the process."""
        raise  # noqa: PLE0704

    def render_str(self, text: str, **options: Any) -> Text:
        """Make text of a string, `printable`: tables, trees and titles pass here before they are measured."""
        return super().render_str(printable(text), **options)


def _console(stderr: bool = False) -> Console:
    """Make a console that takes text literally and folds long lines only on a terminal."""
    console = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _UNFOLDED
    return console


OUT, ERR = _console(), _console(stderr=True)


class _Lines(logging.Handler):
    """Print log records as lines on stderr, above the progress bar, each text once."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose = verbose
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        ours = record.name.split(".")[0] in OURS
        if text in self.said or not (ours or (self.verbose and record.levelno >= logging.WARNING)):
            return
        self.said.add(text)
        warn = record.levelno >= logging.WARNING
        prefix = f"{record.levelname.lower()}: " if warn else ""
        with suppress(OSError):  # a message that cannot be printed must not stop the work
            ERR.print(Text(prefix + one_line(text), style="red" if warn else ""), soft_wrap=True)


@contextmanager
def messages(verbose: bool) -> Iterator[None]:
    """Print the log messages of our modules to stderr: warnings, and with ``verbose`` each step."""
    root = logging.getLogger()
    handler, level = _Lines(verbose), root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    with warnings.catch_warnings():
        if not verbose:
            warnings.simplefilter("ignore")
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            root.removeHandler(handler)
            root.setLevel(level)


class _Pace(ProgressColumn):
    """The number of samples done and the samples per second, for stages that count samples."""

    def render(self, task: Task) -> Text:
        count = f"{task.completed:.0f}/{task.total or '?'}" if task.completed else ""
        return Text(f"{count} {_rate(task.speed)}" if task.speed else count)


def _rate(speed: float) -> str:
    """Format a speed in samples per second, or per minute if it is slow."""
    return f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.1f}/min"


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Show a progress bar, on a terminal only, and remove it at the end. Stages are logged."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        _Pace(),
        TimeRemainingColumn(compact=True),
    )
    with Bar(
        *columns,
        console=ERR,
        transient=True,
        disable=quiet or not ERR.is_terminal,
        speed_estimate_period=PACE_SECONDS,
    ) as bar:
        yield _Stages(bar)


class _Stages:
    """One progress bar, which starts again with each stage."""

    def __init__(self, bar: Bar) -> None:
        self.bar = bar
        self.stage = ""

    def __call__(self, stage: str, done: int = 0, total: int | None = None) -> None:
        INTERRUPTS.check()
        if stage != self.stage:
            logger.info("%s", stage)
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            # The starting value does not count as work done.
            self.bar.add_task(printable(stage), total=total, completed=done)
            self.stage = stage
        self.bar.update(self.bar.task_ids[0], completed=done)


def warn(text: str) -> None:
    """Print a warning to stderr: in a frame on a terminal, else on one line."""
    text = one_line(text)
    if ERR.is_terminal:
        ERR.print(Panel(Text(text), title="WARNING", style="red", border_style="bold red"))
    else:
        ERR.print(f"warning: {text}", soft_wrap=True)


def print_json(content: object) -> None:
    """Print JSON, in which control characters are escaped; of those in ASCII, only DEL would not be."""
    OUT.print(json.dumps(content, indent=2).replace("\x7f", "\\u007f"), soft_wrap=True)
