"""Several items at a time: results in order, errors where they belong, nothing piles up."""

import threading

import pytest

from onnxq.core.parallel import in_order


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_the_order_of_the_items(count):
    first_may_end = threading.Event()

    def work(number):
        if number == 0 and count > 1:
            assert first_may_end.wait(10)
        first_may_end.set()
        return number * number

    assert list(in_order(work, range(20), count)) == [number * number for number in range(20)]


def test_items_are_read_only_as_they_are_needed():
    read = []
    found = in_order(lambda number: number, (read.append(n) or n for n in range(100)), 2)
    assert next(found) == 0
    assert len(read) <= 4
    found.close()
    assert len(read) <= 4


def test_an_error_comes_after_the_results_before_it():
    found = in_order(lambda number: 6 // (3 - number), range(9), 2)
    assert [next(found) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(found)
