"""Hand out units to workers and merge their statistics in a tree; a lost unit is counted again, once.

The driver holds references to packed statistics only, so its memory does not grow with the number of samples.
"""

from __future__ import annotations

import logging
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from onnxq.core.errors import CalibrationError
from onnxq.core.progress import Progress
from onnxq.distributed.counting import Counted, Unit, check_versions

logger = logging.getLogger(__name__)

FAN_IN = 8
"""How many packed statistics are merged at a time."""

AHEAD = 2
"""How many units wait at each worker, so that none is idle."""

MOST_TRIES = 3
"""How often a unit is tried: one that ends its worker every time would end them all."""

Ticket = Any
"""Work under way at a backend."""

Packed = Any
"""Packed statistics, or a reference to them."""


class WorkerJob(Protocol):
    """What all workers do; it is sent to each of them once."""

    def open(self, threads: int) -> Callable[[Any], tuple[Counted, bytes]]:
        """Prepare a worker of so many threads; return what does one unit of the work."""


class WorkerLostError(Exception):
    """A worker ended, or its result was lost with its machine: the work must be done again."""


class Backend(Protocol):
    """Workers, on this machine or elsewhere."""

    @property
    def workers(self) -> int:
        """The number of workers."""

    def submit(self, unit: Any) -> Ticket:
        """Begin one unit of the work."""

    def merge(self, parts: Sequence[Packed]) -> Ticket:
        """Begin to merge packed statistics."""

    def wait(self, tickets: Collection[Ticket]) -> Ticket:
        """Wait until one of the tickets is done, well or not."""

    def result(self, ticket: Ticket) -> tuple[Counted | None, Packed]:
        """Return what came of a ticket that is done; None if it was a merge.

        Raises:
            WorkerLostError: the worker or its result is lost.
        """

    def fetch(self, packed: Packed) -> bytes:
        """Fetch packed statistics; raise WorkerLostError if they are lost."""


class Losses:
    """How often each unit was lost with its worker."""

    def __init__(self) -> None:
        self._tries: Tally[Hashable] = Tally()

    def add(self, unit: Hashable, error: WorkerLostError, name: str) -> None:
        """Count a loss.

        Args:
            unit: what was lost.
            error: how.
            name: what the message calls it.

        Raises:
            CalibrationError: the unit was lost too often: it would end all workers.
        """
        self._tries[unit] += 1
        if self._tries[unit] >= MOST_TRIES:
            raise CalibrationError(
                f"{name} ended {MOST_TRIES} workers ({error}): is the memory of a worker enough? Use fewer "
                "workers, or a smaller batch size"
            )


class Reports:
    """What workers had to say; each warning is passed on once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def hear(self, counted: Counted) -> None:
        """Pass on the warnings of a worker.

        Raises:
            CalibrationError: it runs other versions of the libraries.
        """
        check_versions(counted)
        for text in counted.warnings:
            if text not in self._told:
                self._told.add(text)
                logger.warning("%s", text)


@dataclass(frozen=True)
class Piece:
    """Packed statistics of some units. The next level of the tree has ``FAN_IN`` times as many of them."""

    units: tuple[Unit, ...]
    packed: Packed


@dataclass(frozen=True)
class Running:
    """Work under way: the units that it covers, and the pieces that it merges; none if it counts."""

    units: tuple[Unit, ...]
    sources: tuple[Piece, ...] = ()


@dataclass
class Totals:
    """What the workers reported.

    Attributes:
        given: the number of samples that were read.
        skipped: the number of bad samples.
        recounted: the number of units that were counted again.
    """

    given: int = 0
    skipped: int = 0
    recounted: int = 0


class Schedule:
    """The state of a calibration on several workers.

    Attributes:
        totals: what the workers reported so far.
    """

    def __init__(self, backend: Backend, units: Iterable[Unit], done: Sequence[Piece] = ()) -> None:
        """Begin.

        Args:
            backend: the workers.
            units: the units to count.
            done: pieces of an earlier run; they cover other units.
        """
        self._backend = backend
        self._waiting = deque(units)
        self._pieces = list(done)
        self._running: dict[Ticket, Running] = {}
        self._losses, self._reports = Losses(), Reports()
        self._all = sum(map(len, self._waiting))
        self.totals = Totals()

    def run(self, progress: Progress) -> Piece:
        """Count all units, and merge them to one piece.

        Raises:
            CalibrationError: a sample cannot be used, or a unit ends every worker.
        """
        while self._waiting or self._running or len(self._pieces) != 1:
            self._start()
            ticket = self._backend.wait(self._running.keys())
            self._take(ticket, self._running.pop(ticket))
            progress("calibrating", self._all - self._left(), self._all)
        return self._pieces[0]

    def rescued(self) -> list[Piece]:
        """Return the pieces that are there, after an interrupt: no unit is in two of them."""
        return self._pieces + [piece for work in self._running.values() for piece in work.sources]

    def _left(self) -> int:
        counting = (work.units for work in self._running.values() if not work.sources)
        return sum(map(len, self._waiting)) + sum(len(unit) for units in counting for unit in units)

    def _start(self) -> None:
        """Keep the workers busy, and merge where enough pieces are there."""
        counting = sum(not work.sources for work in self._running.values())
        while self._waiting and counting < AHEAD * self._backend.workers:
            unit = self._waiting.popleft()
            self._running[self._backend.submit(unit)] = Running((unit,))
            counting += 1
        at_end = not self._waiting and not self._running
        while len(self._pieces) >= FAN_IN or (at_end and len(self._pieces) > 1):
            self._pieces.sort(key=lambda piece: len(piece.units))
            sources, self._pieces = tuple(self._pieces[:FAN_IN]), self._pieces[FAN_IN:]
            ticket = self._backend.merge([piece.packed for piece in sources])
            units = tuple(unit for piece in sources for unit in piece.units)
            self._running[ticket] = Running(units, sources)

    def _take(self, ticket: Ticket, work: Running) -> None:
        try:
            counted, packed = self._backend.result(ticket)
        except WorkerLostError as error:
            self._again(work, error)
            return
        self._pieces.append(Piece(work.units, packed))
        if counted is not None:
            self._reports.hear(counted)
            self.totals.given += counted.given
            self.totals.skipped += counted.skipped

    def _again(self, work: Running, error: WorkerLostError) -> None:
        """Count the units of lost work again."""
        for unit in work.units:
            self._losses.add(unit, error, f"samples {unit.start} to {unit.stop - 1}")
        self.totals.recounted += len(work.units)
        logger.warning(
            "a worker was lost (%s): %d samples are counted again", error, sum(map(len, work.units))
        )
        self._waiting.extendleft(work.units)
