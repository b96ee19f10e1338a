"""What several threads gather at once: a set of statistics for each, merged in the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import reduce

from calibrators.statistics import Statistics
from calibrators.tensor_statistics import TensorStatistics


class Gathered:
    """What the threads have gathered: several sets of statistics, each lent to one thread at a time.

    Attributes:
        ran: set when a batch has run, or cannot be run.
        samples: samples taken in so far.
        end: the number after that of the last sample that was taken in or refused.
        largest: the most bytes that the observed tensors of one batch took.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.ran = threading.Event()
        self._idle: list[dict[str, TensorStatistics]] = []
        self.samples = 0
        self.end = 0
        self.largest = 0

    def borrow(self) -> dict[str, TensorStatistics]:
        """Statistics by tensor that nobody else folds into."""
        with self._lock:
            return self._idle.pop() if self._idle else {}

    def give_back(self, found: dict[str, TensorStatistics]) -> None:
        """A whole batch was folded."""
        with self._lock:
            self._idle.append(found)

    def count(self, samples: int, end: int, size: int = 0) -> None:
        """``samples`` of a batch numbered up to ``end`` were taken in, whose tensors took ``size`` bytes."""
        with self._lock:
            self.samples += samples
            self.end = max(self.end, end)
            self.largest = max(self.largest, size)
        self.ran.set()

    def statistics(self, names: Sequence[str], first: int, fingerprint: str) -> Statistics:
        """All of it, merged; ``first`` is the number of the first sample."""
        tensors = {
            name: reduce(TensorStatistics.merge, [part[name] for part in self._idle] or [TensorStatistics()])
            for name in names
        }
        span = (first, max(first, self.end))
        return Statistics(tensors, self.samples, span=span, fingerprint=fingerprint)
