"""Workers as processes of this machine, without a cluster."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import signal
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any

from onnxq.distributed.counting import Counted, merge_packed
from onnxq.distributed.scheduler import WorkerJob, WorkerLostError

_WORK: list[Callable[[Any], tuple[Counted, bytes]]] = []
"""What this process does, if it is a worker."""


def _begin(job: WorkerJob, threads: int) -> None:
    """Prepare a new worker. An interrupt is for the driver, which ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    _WORK[:] = [job.open(threads)]


def _work_on(unit: Any) -> tuple[Counted, bytes]:
    return _WORK[0](unit)


def _merge(parts: Sequence[bytes]) -> tuple[None, bytes]:
    return None, merge_packed(parts)


class Processes:
    """Processes that are started, not forked: a fork would copy the threads' locks of ONNX Runtime."""

    def __init__(self, job: WorkerJob, workers: int, threads: int) -> None:
        """Start the processes.

        Args:
            job: what is to be done.
            workers: the number of processes.
            threads: the number of threads of each.
        """
        self._job, self._workers, self._threads = job, workers, threads
        self._pool = self._open()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._pool)

    @property
    def workers(self) -> int:
        """The number of processes."""
        return self._workers

    def submit(self, unit: Any) -> Future[Any]:
        """Begin one unit of the work."""
        return self._submit(_work_on, unit)

    def merge(self, parts: Sequence[bytes]) -> Future[Any]:
        """Begin to merge packed statistics."""
        return self._submit(_merge, parts)

    def wait(self, tickets: Collection[Future[Any]]) -> Future[Any]:
        """Wait until one of the tickets is done."""
        done, _ = concurrent.futures.wait(tickets, return_when=concurrent.futures.FIRST_COMPLETED)
        return next(iter(done))

    def result(self, ticket: Future[Any]) -> tuple[Counted | None, bytes]:
        """Return what came of a ticket; raise WorkerLostError if a process ended."""
        try:
            counted, packed = ticket.result()
        except (BrokenProcessPool, concurrent.futures.CancelledError) as error:
            raise WorkerLostError("a process ended unexpectedly") from error
        return counted, packed

    def fetch(self, packed: bytes) -> bytes:
        """Return the statistics, which are here already."""
        return packed

    def _submit(self, task: Any, argument: object) -> Future[Any]:
        try:
            return self._pool.submit(task, argument)
        except BrokenProcessPool:  # all of its work is lost, and will be submitted again to the new one
            self._end(self._pool)
            self._pool = self._open()
            return self._pool.submit(task, argument)

    def _open(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(
            self._workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(self._job, self._threads),
        )

    @staticmethod
    def _end(pool: ProcessPoolExecutor) -> None:
        """End the processes at once, whatever they do."""
        processes = list((pool._processes or {}).values())
        for process in processes:
            process.terminate()
        pool.shutdown(cancel_futures=True)
