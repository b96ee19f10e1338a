"""Work on several items at a time, with the results in the order of the items."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
