"""Work on several items at a time: on threads, or on workers that are processes of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Executor(Protocol):
    """Workers: processes of this machine, or of others."""

    @property
    def threads(self) -> int:
        """The number of threads of each worker."""

    def map(self, work: Callable[[_Item], Iterable[_Result]], items: Sequence[_Item]) -> Iterator[_Result]:
        """Yield all results of ``work(item)`` for each item, in any order.

        Args:
            work: is sent to each worker once. It must give the same results again, since the work of a worker
                that is lost is done again.
            items: what is sent to one worker each.

        Raises:
            OnnxqError: ``work`` raises it, or ends one worker after the other.
        """


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item], count: int) -> Iterator[_Result]:
    """Yield ``work(item)`` for each item, in order.

    Items are read as they are needed, so neither they nor the results pile up.

    Args:
        work: called on ``count`` threads; what it raises is raised here, in order.
        items: read on the calling thread.
        count: the number of items to work on at a time.
    """
    with ThreadPoolExecutor(count) as pool:
        pending: deque[Future[_Result]] = deque()
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
