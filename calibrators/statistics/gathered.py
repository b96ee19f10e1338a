"""The statistics that several threads gather, each with a set that no other thread uses at that time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import reduce

from calibrators.statistics import Statistics, TensorStatistics


class Gathered:
    """The statistics that the threads have gathered: several sets, each lent to one thread at a time.

    Attributes:
        ran: set when a batch has run or was refused.
        samples: number of samples added so far.
        end: one more than the number of the last sample that was added or refused.
        largest: the largest size of the inputs and the observed tensors of one batch, in bytes.
    """

    def __init__(self, largest: int = 0) -> None:
        self._lock = threading.Lock()
        self.ran = threading.Event()
        self._idle: list[dict[str, TensorStatistics]] = []
        self.samples = 0
        self.end = 0
        self.largest = largest

    def borrow(self) -> dict[str, TensorStatistics]:
        """Lend a set of statistics, by tensor name, that no other thread uses."""
        with self._lock:
            return self._idle.pop() if self._idle else {}

    def give_back(self, found: dict[str, TensorStatistics]) -> None:
        """Take back a borrowed set, to which a whole batch was added."""
        with self._lock:
            self._idle.append(found)

    def count(self, samples: int, end: int, size: int = 0) -> None:
        """Record a batch that was added or refused.

        Args:
            samples: number of samples that were added.
            end: one more than the number of the batch's last sample in the stream of data.
            size: bytes of the inputs and the observed tensors.
        """
        with self._lock:
            self.samples += samples
            self.end = max(self.end, end)
            self.largest = max(self.largest, size)
        self.ran.set()

    def statistics(self, names: Sequence[str], first: int, fingerprint: str) -> Statistics:
        """Merge all sets.

        Args:
            names: the observed tensors.
            first: the number of the first sample in the stream of data.
            fingerprint: fingerprint of the model.
        """
        tensors = {
            name: reduce(TensorStatistics.merge, [part[name] for part in self._idle] or [TensorStatistics()])
            for name in names
        }
        span = (first, max(first, self.end))
        return Statistics(tensors, self.samples, span=span, fingerprint=fingerprint)
