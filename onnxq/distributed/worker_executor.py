"""Measure many changes of one model on several workers: each has the model and the samples once."""

from __future__ import annotations

import io
import logging
import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import onnx_ir as ir

from onnxq.core.errors import ConfigError
from onnxq.distributed.counting import Counted, Heard, packed_model, unpacked_model
from onnxq.distributed.scheduler import AHEAD, Backend, Losses, Reports, Ticket, WorkerLostError
from onnxq.distributed.worker_pool import Workers, opened

logger = logging.getLogger(__name__)

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class TrialJob:
    """What all workers need.

    Attributes:
        work: the function to call with each item, packed.
        folder: the working folder, in which paths of options are meant.
    """

    work: bytes = field(repr=False)
    folder: str = field(default_factory=os.getcwd)

    def open(self, threads: int) -> Callable[[Any], tuple[Counted, bytes]]:
        """Unpack the function, once a worker; it knows its number of threads already."""
        with suppress(OSError):  # of another machine: then a file that the work needs is not found
            os.chdir(self.folder)
        work = pickle.loads(self.work)

        def run(item: Any) -> tuple[Counted, bytes]:
            with Heard() as heard:
                found = list(work(item))
            return Counted(warnings=tuple(heard)), packed(found)

        return run


@dataclass(frozen=True)
class WorkerExecutor:
    """The `Executor` of several workers. They are started for each call of `map`, and ended after it.

    Attributes:
        workers: where to run.
        given_threads: the number of threads of each worker; 0: `Workers.threads`.
    """

    workers: Workers
    given_threads: int = 0

    @property
    def threads(self) -> int:
        """The number of threads of each worker."""
        return self.given_threads or self.workers.threads

    def map(self, work: Callable[[_Item], Iterable[_Result]], items: Sequence[_Item]) -> Iterator[_Result]:
        """Do as `Executor.map`.

        Raises:
            CalibrationError: an item ended several workers, or the model is too large to be sent.
            ConfigError: ``work`` cannot be sent.
            OnnxqError: what ``work`` raises.
        """
        with opened(TrialJob(packed(work)), self.workers, self.threads) as backend:
            yield from _results(backend, items)


def _results(backend: Backend, items: Sequence[Any]) -> Iterator[Any]:
    waiting, running = deque(items), dict[Ticket, Any]()
    losses, reports = Losses(), Reports()
    while waiting or running:
        while waiting and len(running) < AHEAD * backend.workers:
            item = waiting.popleft()
            running[backend.submit(item)] = item
        ticket = backend.wait(running.keys())
        item = running.pop(ticket)
        try:
            counted, found = backend.result(ticket)
            found = backend.fetch(found)
        except WorkerLostError as error:
            losses.add(item, error, f"the trials of {', '.join(map(str, item))}")
            logger.warning("a worker was lost (%s): %d trials are made again", error, len(item))
            waiting.appendleft(item)
            continue
        if counted is not None:
            reports.hear(counted)
        yield from pickle.loads(found)


def packed(work: object) -> bytes:
    """Serialize what a worker needs, models too; a model that occurs twice is sent once.

    Raises:
        CalibrationError: a model is too large to be sent.
        ConfigError: there is a function of Python in it that no other process can import.
    """
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(work)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"cannot be sent to workers: {error}. Name a metric as FILE.py:FUNCTION, or use one process"
        ) from error
    return buffer.getvalue()


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: object) -> Any:
        if isinstance(value, ir.Model):
            return unpacked_model, (packed_model(value),)
        if isinstance(value, MappingProxyType):
            return _proxy, (dict(value),)
        return NotImplemented


def _proxy(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)
