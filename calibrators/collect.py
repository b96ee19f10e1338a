"""One pass over the data: run the model on several threads and collect statistics of its tensors.

Several batches are under way at a time. One thread runs a batch and adds it to the statistics, while the
values are still in the processor's cache. Each thread adds to a set of statistics that no other thread uses
at that time. The sets are merged in the end. Merging is exact, so the result depends neither on the number of
threads nor on the order in which batches finish.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.blocked_layout import open_unordered
from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.batching import parts
from calibrators.data.samples import Sample, input_specs
from calibrators.errors import CalibrationError
from calibrators.fingerprint import fingerprint
from calibrators.float8 import run
from calibrators.held_noise import noise_feeds
from calibrators.session import RUNTIME_ERRORS, as_model, brief, checked_feeds, open_session
from calibrators.statistics import Statistics, TensorStatistics
from calibrators.statistics.folding import Folding
from calibrators.statistics.gathered import Gathered

logger = logging.getLogger(__name__)

SELECTION = 8192
"""Number of elements of a sample's tensor that the histogram counts, unless every element is requested."""

MOST_BYTES = 2**30
"""Limit of the memory for the inputs and the observed tensors of all batches under way."""

COUNTED_BYTES, MOST_COUNTED = 2**22, 64
"""Limits of small batches that are counted together: the bytes of inputs and observed tensors, the number."""

WAITING = 2
"""Number of batches that may wait for a thread, so that no thread waits for the data source."""


def collect(
    model: ir.Model | str | os.PathLike[str],
    tensors: Sequence[str],
    batches: Iterable[Sample],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Statistics:
    """Collect the statistics of ``tensors`` over all ``batches``.

    Args:
        model: a model, or the path of one; it is not changed.
        tensors: tensors of the main graph, as for `Collector`.
        batches: the batches; the model takes each of them in one run.
        on_batch: called after each batch with the number of samples so far.
        options: further keyword arguments of `Collector`.

    Raises:
        CalibrationError: there are no batches, the model lacks one of the tensors, or it refuses a batch
            (the message names the sample).
    """
    total = 0
    with Collector(model, tensors, **options) as collector:
        for batch in batches:
            collector.observe(batch)
            total += batch.count
            if on_batch is not None:
                on_batch(total)
        return collector.finish()


class Collector:
    """Collects statistics from batches given one by one, for the user's own loop; a context manager.

    Each batch is run once and then forgotten, so memory does not grow with the number of batches. Batches may
    differ in shape. NaN and infinite elements are left out and counted; a warning names the tensor and the
    sample. `finish` may be called in the ``with`` block or after it, also if the loop was interrupted: then
    the statistics cover the batches that had begun.

    Attributes:
        fingerprint: fingerprint of the model; it is stored with the statistics.
    """

    def __init__(
        self,
        model: ir.Model | str | os.PathLike[str],
        tensors: Sequence[str],
        *,
        channels: Mapping[str, int] | None = None,
        every_element: bool = False,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int = 0,
        resume: Statistics | None = None,
        on_bad: OnBad | None = None,
    ) -> None:
        """Prepare to run ``model``.

        Args:
            model: a model, or the path of one; it is not changed.
            tensors: tensors of the main graph: intermediate ones, inputs or outputs.
            channels: tensor name -> channel axis, for tensors whose channel means are collected too.
            every_element: count every element in the histograms. Otherwise, a regular selection of the
                elements of large tensors is counted. Extremes cover all elements in both cases.
            providers: execution providers, the preferred one first.
            threads: number of threads that run and count; 0 uses every processor.
            resume: statistics of the same tensors, to which new samples are added.
            on_bad: called for each sample that the model refuses; the sample is then skipped. None: such a
                sample is an error.

        Raises:
            CalibrationError: the model lacks one of the tensors, or does not load.
        """
        self._model = as_model(model)
        self.fingerprint = fingerprint(self._model)
        self._inputs = input_specs(self._model)
        self._names = list(dict.fromkeys(tensors))
        self._channels = dict(channels or {})
        selection = None if every_element else SELECTION
        self._foldings = {name: Folding(name, selection, self._channels.get(name)) for name in self._names}
        self._providers = providers
        self._threads = threads or processors()
        self._resume = resume
        self._on_bad = on_bad
        self._session = self._open(1)
        self._pool = ThreadPoolExecutor(self._threads)
        self._room = 0
        self._small: deque[Sample] = deque()
        self._closed = False
        self._under_way: deque[Future[list[_Outcome]]] = deque()
        self._first = self._number = resume.span[1] if resume else 0
        self._gathered = Gathered()
        # Counting a selection takes many short steps, and several threads would wait for the interpreter's
        # lock: so one thread counts while the others run. Counting every element does not hold that lock.
        self._folding = threading.Semaphore(self._threads if every_element else 1)
        self._warned: set[str] = set()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Wait for the batches under way; after an error, discard those that have not begun."""
        if kind is None:
            self._end()
        else:
            self.close()

    def close(self) -> None:
        """Discard the batches that have not begun, and release the threads."""
        self._small.clear()
        self._pool.shutdown(cancel_futures=True)
        self._end()

    def _end(self) -> None:
        self._submit()
        self._closed = True
        self._pool.shutdown()

    def observe(self, batch: Sample) -> None:
        """Add one batch; return as soon as the next one may be given.

        Raises:
            CalibrationError: the model refuses this batch or a recent one, and there is no ``on_bad``; or the
                collector was closed.
        """
        if self._closed:
            raise CalibrationError(
                f"{batch.name} comes too late: the collector was closed. Open a new one (resume=...)"
            )
        self._take(batch)
        if len(self._small) < self._together():
            return
        self._submit()
        if not self._room:
            self._measure()
        self._wait(self._room + WAITING if self._room == self._threads else self._room)

    def finish_part(self) -> Statistics:
        """Wait for the batches under way, return their statistics, perhaps of no samples, and begin anew.

        The session and the threads are kept for the next part of the data.

        Raises:
            CalibrationError: as for `observe`.
        """
        self._submit()
        self._wait(0)
        part, self._gathered = self._gathered, Gathered(self._gathered.largest)
        return part.statistics(self._names, self._first, self.fingerprint)

    def finish(self, *, may_be_empty: bool = False) -> Statistics:
        """Wait for the batches under way and return the statistics.

        The statistics of all tensors cover the same samples, also after an interrupt.

        Args:
            may_be_empty: whether having no samples is no error.

        Raises:
            CalibrationError: as for `observe`, or no sample was given.
        """
        self._end()
        self._wait(0)
        result = self._gathered.statistics(self._names, self._first, self.fingerprint)
        if self._resume is not None:
            result = self._resume.merge(result, same_stream=True)
        if result.samples:
            tell_nonfinite(result)
        elif not may_be_empty:
            raise _nothing(refused=result.span[1] - result.span[0])
        return result

    def _measure(self) -> None:
        """Measure the first accepted batch, which runs alone, to find how many may run side by side."""
        self._gathered.ran.wait()
        if not self._gathered.largest:
            return
        self._room = min(max(MOST_BYTES // self._gathered.largest, 1), self._threads)
        if self._room < self._threads:
            self._wait(0)
            self._pool.shutdown()
            self._pool = ThreadPoolExecutor(self._room)
            del self._session  # and the memory that it holds, among it that of the batch
            self._session = self._open(self._threads // self._room)

    def _open(self, threads: int) -> ort.InferenceSession:
        if self._providers[0] == "CPUExecutionProvider":
            return open_unordered(self._model, self._names, self._channels, threads)
        return open_session(
            self._model, outputs=self._names, providers=self._providers, threads=threads, alone=False
        )

    def _together(self) -> int:
        """The number of batches to count together; 1 until the size of one is known."""
        return min(max(COUNTED_BYTES // self._gathered.largest, 1), MOST_COUNTED) if self._room else 1

    def _take(self, batch: Sample) -> None:
        # A copy: the caller may reuse the arrays for the next batch while this one waits.
        feeds = {name: np.array(array) for name, array in batch.feeds.items()}
        numbers = batch.numbers or tuple(range(self._number, self._number + batch.count))
        batch = replace(batch, feeds=feeds, numbers=numbers)
        self._number = max(self._number, *_after(batch))
        self._small.append(batch)

    def _submit(self) -> None:
        """Hand the batches that were taken to a thread."""
        if not self._small:
            return
        self._gathered.ran.clear()
        future = self._pool.submit(self._take_in, self._small)
        future.add_done_callback(lambda _: self._gathered.ran.set())
        self._under_way.append(future)
        # An interrupt may come before this. Then the batches are handed over again, but each is taken once.
        self._small = deque()

    def _wait(self, left: int) -> None:
        """Wait until at most ``left`` batches are under way."""
        while len(self._under_way) > left:
            future = self._under_way[0]
            outcomes = [] if future.cancelled() else future.result()
            self._under_way.popleft()
            for outcome in outcomes:
                self._tell(outcome)

    def _tell(self, outcome: _Outcome) -> None:
        self._warn(outcome)
        if outcome.refused is not None:
            if self._on_bad is None:
                refuse(outcome.refused)
            self._on_bad(outcome.refused, outcome.batch.count)

    def _warn(self, outcome: _Outcome) -> None:
        """Warn once of each tensor with NaN or infinite values, naming the first batch that shows them."""
        for name, (bad, size) in outcome.nonfinite.items():
            if name not in self._warned:
                logger.warning(
                    "%s: %d of %d values of tensor %s are NaN or infinite; such values are left out of its "
                    "range",
                    *(outcome.batch.name, bad, size, name),
                )
        self._warned |= outcome.nonfinite.keys()

    def _take_in(self, group: deque[Sample]) -> list[_Outcome]:
        """Run batches and add them to the statistics."""
        ran: list[_Ran] = []
        outcomes: list[_Outcome] = []
        for batch, result in (each for one in _drained(group) for each in self._run(one)):
            if isinstance(result, CalibrationError):
                self._gathered.count(0, max(_after(batch)))
                outcomes.append(_Outcome(batch, refused=result))
            else:
                size = sum(getattr(array, "nbytes", 0) for array in (*result, *batch.feeds.values()))
                self._gathered.count(batch.count, max(_after(batch)), size)
                ran.append((batch, result))
        with self._folding:
            return [*outcomes, *self._fold_all(ran)]

    def _run(self, batch: Sample) -> Iterator[tuple[Sample, list[NDArray[np.generic]] | CalibrationError]]:
        """Run one batch. If the model refuses it, try its samples one by one."""
        try:
            yield batch, run_batch(self._session, self._names, batch)
        except CalibrationError as error:
            tries = parts(batch, self._inputs)
            if len(tries) > 1:
                for part in tries:
                    yield from self._run(part)
            else:
                yield batch, error

    def _fold_all(self, ran: Sequence[_Ran]) -> Iterator[_Outcome]:
        found = self._gathered.borrow()
        for name in reversed(self._names):
            column = [(batch, arrays.pop()) for batch, arrays in ran]
            if bad := self._foldings[name].fold(column, found.setdefault(name, TensorStatistics())):
                yield _Outcome(bad[0], {name: bad[1:]})
        self._gathered.give_back(found)


def _drained(group: deque[Sample]) -> Iterator[Sample]:
    with suppress(IndexError):
        while True:
            yield group.popleft()


def _after(batch: Sample) -> Sequence[int]:
    """The number after that of each sample of a batch."""
    return [number + 1 for number in batch.numbers] or [0]


_Ran = tuple[Sample, list[NDArray[np.generic]]]
"""A batch, and the observed tensors for it."""


@dataclass(frozen=True)
class _Outcome:
    """The result of one ``batch``.

    Attributes:
        nonfinite: tensor -> (number of NaN and infinite values, number of all values), if there are any.
        refused: the error with which the model refused the batch; None if it ran.
    """

    batch: Sample
    nonfinite: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    refused: CalibrationError | None = None


def run_batch(
    session: ort.InferenceSession, outputs: Sequence[str], batch: Sample
) -> list[NDArray[np.generic]]:
    """Run one batch and return the tensors called ``outputs``, in that order.

    Args:
        session: a session that gives these tensors.
        outputs: tensor names.
        batch: the batch to run.

    Raises:
        CalibrationError: the model refuses the batch; the message names the sample.
    """
    try:
        feeds = {**checked_feeds(session, batch.feeds), **noise_feeds(session, batch.name)}
        return run(session, outputs, feeds) if outputs else []
    except RUNTIME_ERRORS as error:
        raise CalibrationError(f"the model cannot run {batch.name}: {brief(error)}") from error


def _nothing(refused: int) -> CalibrationError:
    """The error for a run that gave no statistics."""
    if refused:
        return CalibrationError(f"the model refuses every sample that it was given ({refused})")
    return CalibrationError("there is no calibration data: no sample was given")


def tell_nonfinite(found: Statistics) -> None:
    """Warn at the end of all tensors with NaN or infinite values, or without any finite one."""
    for name, tensor in found.items():
        if not tensor.count:
            logger.warning("tensor %s never held a finite value: it cannot be given a range", name)
        elif tensor.nonfinite:
            logger.warning("tensor %s held %d NaN or infinite values in total", name, tensor.nonfinite)


def processors() -> int:
    """Count the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
