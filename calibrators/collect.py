"""One pass over the data, on several threads.

One pass over the data: run the model, and fold what its tensors hold into statistics.

Several batches are under way at a time, each on one thread from its run to the last count: that keeps all
processors busy, with values that are still in their caches. Each thread folds into statistics that are its
own at that time; in the end they are merged, which is exact, so that the result depends neither on the number
of threads nor on who came first.

What several threads gather at once: a set of statistics for each, merged in the end.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.data.bad_samples import OnBad, refuse
from calibrators.data.batching import parts
from calibrators.data.samples import Sample, input_specs
from calibrators.errors import CalibrationError
from calibrators.fingerprint import fingerprint
from calibrators.session import RUNTIME_ERRORS, brief, load_model, open_session
from calibrators.statistics import Statistics, TensorStatistics

logger = logging.getLogger(__name__)


SELECTION = 8192
"""Elements of a sample's tensor that are counted into its histogram, unless all are to be."""


MOST_BYTES = 2**30
"""What the observed tensors of all batches under way may take together."""


WAITING = 2
"""Batches that may wait for a thread, so that none has to wait for the source."""


def collect(
    model: ir.Model | str | os.PathLike[str],
    tensors: Sequence[str],
    batches: Iterable[Sample],
    *,
    on_batch: Callable[[int], None] | None = None,
    **options: Any,
) -> Statistics:
    """The statistics of ``tensors`` over all ``batches``.

    Args:
        model: a model, or the path of one; it is not changed.
        tensors: as for `Collector`.
        batches: what the model takes in one run each, with the number of samples in it.
        on_batch: called with each batch, with the number of samples so far.
        options: more keywords of `Collector`.

    Raises:
        CalibrationError: no batches, a tensor that the model does not have, or a batch that the
            model refuses (the message names the sample).
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
    """Takes batches one by one, as a loop of one's own has them; a context manager.

    Each batch is run once and forgotten, so memory does not depend on how many there are. Batches may
    differ in shape. NaN and infinite elements are left out and counted; a warning names the tensor
    and the sample. An interrupt may come at any time: `quantize_calibrated` can still be called.

    Attributes:
        fingerprint: of the model; the statistics carry it.
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
            channels: of some of them, the axis along which the means of the channels are kept too.
            every_element: count every element into the histograms. Otherwise, of large tensors, a
                regular selection; extremes are those of all elements either way.
            providers: execution providers, the preferred one first.
            threads: for running and counting; 0 takes every processor.
            resume: statistics of the same tensors to go on from.
            on_bad: told of samples that the model refuses, which are then passed over.

        Raises:
            CalibrationError: a tensor that the model does not have, or a model that does not load.
        """
        self._model = model if isinstance(model, ir.Model) else load_model(model)
        self.fingerprint = fingerprint(self._model)
        self._inputs = input_specs(self._model)
        self._names = list(dict.fromkeys(tensors))
        self._channels = dict(channels or {})
        self._selection = None if every_element else SELECTION
        self._providers = providers
        self._threads = threads or processors()
        self._resume = resume
        self._on_bad = on_bad
        self._session = self._open(1)
        self._pool = ThreadPoolExecutor(self._threads)
        self._room = 0
        self._under_way: deque[Future[list[_Outcome]]] = deque()
        self._first = self._number = resume.span[1] if resume else 0
        self._gathered = Gathered()
        # A selection takes many short steps, at which several threads would only wait for the interpreter's
        # lock: one folds while the others run. Counts of every element do not hold that lock.
        self._folding = threading.Semaphore(self._threads if every_element else 1)
        self._warned: set[str] = set()

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def observe(self, batch: Sample) -> None:
        """Take in one batch; returns as soon as the next one may come.

        Raises:
            CalibrationError: the model refuses this batch or one shortly before it, and nobody
                passes over such.
        """
        self._submit(batch)
        if not self._room:
            self._measure()
        self._wait(self._room + WAITING if self._room == self._threads else self._room)

    def finish(self) -> Statistics:
        """Wait for what is under way, and give the statistics.

        All tensors then hold the same samples, also after an interrupt.

        Raises:
            CalibrationError: as `observe`, or there was not one sample.
        """
        self._pool.shutdown()
        self._wait(0)
        result = self._gathered.statistics(self._names, self._first, self.fingerprint)
        if self._resume is not None:
            result = self._resume.merge(result)
        if not result.samples:
            raise _nothing(refused=result.span[1] - result.span[0])
        _report(result)
        return result

    def _measure(self) -> None:
        """The first batch that the model takes runs alone: it shows how many may run side by side."""
        self._gathered.ran.wait()
        if not self._gathered.largest:
            return
        self._room = min(max(MOST_BYTES // self._gathered.largest, 1), self._threads)
        if self._room < self._threads:
            self._session = self._open(self._threads // self._room)

    def _open(self, threads: int) -> ort.InferenceSession:
        return open_session(
            self._model, outputs=self._names, providers=self._providers, threads=threads, alone=False
        )

    def _submit(self, batch: Sample) -> None:
        # A copy: whoever gives the batches may fill the same arrays again while this one waits.
        batch = replace(batch, feeds={name: np.array(array) for name, array in batch.feeds.items()})
        self._gathered.ran.clear()
        future = self._pool.submit(self._take_in, batch, self._number)
        future.add_done_callback(lambda _: self._gathered.ran.set())
        self._under_way.append(future)
        self._number += batch.count

    def _wait(self, left: int) -> None:
        """Until at most ``left`` batches are under way."""
        while len(self._under_way) > left:
            outcomes = self._under_way[0].result()
            self._under_way.popleft()
            for outcome in outcomes:
                self._tell(outcome)

    def _tell(self, outcome: _Outcome) -> None:
        self._warn(outcome)
        if outcome.refused is None:
            return
        if self._on_bad is None:
            refuse(outcome.refused)
        self._on_bad(outcome.refused, outcome.batch.count)

    def _warn(self, outcome: _Outcome) -> None:
        """Name each tensor that is not sound once, with the first batch that shows it."""
        for name, (bad, size) in outcome.nonfinite.items():
            if name not in self._warned:
                logger.warning(
                    "%s: %d of %d values of tensor %s are NaN or infinite; such values are left out of its "
                    "range",
                    *(outcome.batch.name, bad, size, name),
                )
        self._warned |= outcome.nonfinite.keys()

    def _take_in(self, batch: Sample, number: int) -> list[_Outcome]:
        """Run one batch and fold it. If the model refuses it, its samples are tried one by one."""
        end = number + batch.count
        try:
            arrays = run_batch(self._session, self._names, batch)
        except CalibrationError as error:
            tries = parts(batch, self._inputs)
            if len(tries) > 1:
                return [one for i, part in enumerate(tries) for one in self._take_in(part, number + i)]
            self._gathered.count(0, end)
            return [_Outcome(batch, refused=error)]
        with self._folding:
            return [self._fold_all(arrays, batch, number)]

    def _fold_all(self, arrays: list[NDArray[np.generic]], batch: Sample, number: int) -> _Outcome:
        found = self._gathered.borrow()
        size = sum(getattr(array, "nbytes", 0) for array in arrays)
        self._gathered.count(batch.count, number + batch.count, size)
        nonfinite: dict[str, tuple[int, int]] = {}
        for name in reversed(self._names):
            array = arrays.pop()
            bad = self._fold(found.setdefault(name, TensorStatistics()), name, array, batch, number)
            if bad:
                nonfinite[name] = bad, array.size
        self._gathered.give_back(found)
        return _Outcome(batch, nonfinite)

    def _fold(
        self, tensor: TensorStatistics, name: str, array: NDArray[np.generic], batch: Sample, number: int
    ) -> int:
        """How many values are not finite."""
        if not isinstance(array, np.ndarray):
            raise CalibrationError(
                f"{name} cannot be observed: it is not a tensor but a {type(array).__name__}"
            )
        known = tensor.nonfinite
        try:
            tensor.update(
                array,
                batch.count,
                number=number,
                name_of=batch.name_of,
                selection=self._selection,
                channel_axis=self._channels.get(name),
            )
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{name} cannot be observed: {error}") from error
        return tensor.nonfinite - known


@dataclass(frozen=True)
class _Outcome:
    """What became of a batch.

    Attributes:
        batch: the batch.
        nonfinite: tensor -> how many of its values are NaN or infinite, of how many, where any are.
        refused: why the model does not take it.
    """

    batch: Sample
    nonfinite: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    refused: CalibrationError | None = None


def run_batch(
    session: ort.InferenceSession, outputs: Sequence[str], batch: Sample
) -> list[NDArray[np.generic]]:
    """The tensors called ``outputs`` for one batch; CalibrationError names the sample."""
    try:
        return list(session.run(list(outputs), dict(batch.feeds))) if outputs else []
    except RUNTIME_ERRORS as error:
        raise CalibrationError(f"the model cannot run {batch.name}: {brief(error)}") from error


def _nothing(refused: int) -> CalibrationError:
    """Why there are no statistics."""
    if refused:
        return CalibrationError(f"the model refuses every sample that it was given ({refused})")
    return CalibrationError("there is no calibration data: not one sample was given")


def _report(found: Statistics) -> None:
    """Say once more, at the end, which tensors were not sound."""
    for name, tensor in found.items():
        if not tensor.count:
            logger.warning("tensor %s never held a finite value: it cannot be given a range", name)
        elif tensor.nonfinite:
            logger.warning("tensor %s held %d NaN or infinite values in all", name, tensor.nonfinite)


def processors() -> int:
    """How many of the machine's processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
