"""A bad item fails by itself."""

import pytest

from calibrators.data.bad_samples import usable
from calibrators.errors import CalibrationError


def good(value):
    return lambda: value


def bad(text):
    def load():
        raise CalibrationError(text)

    return load


def test_without_anybody_to_tell_the_first_bad_item_is_an_error():
    items = usable([good(1), bad("b: torn"), good(2)], None)
    assert next(items) == 1
    with pytest.raises(CalibrationError, match=r"^b: torn \(or skip bad samples: --skip-bad-samples\)$"):
        next(items)


def test_bad_items_are_told_and_passed_over():
    told = []
    items = usable(
        [bad("a"), good(1), bad("b"), good(2)], lambda error, count: told.append((str(error), count))
    )
    assert list(items) == [1, 2]
    assert told == [("a", 1), ("b", 1)]


def test_if_all_are_bad_nothing_can_be_used():
    told = []
    with pytest.raises(CalibrationError, match=r"no sample can be used\. The first error: a"):
        list(usable([bad("a"), bad("b")], lambda error, _: told.append(str(error))))
    assert told == ["a", "b"]


def test_no_items_are_none_that_are_bad():
    assert list(usable([], None)) == []


def test_what_the_source_itself_raises_is_no_bad_item():
    def source():
        yield good(1)
        raise CalibrationError("the source")

    told = []
    items = usable(source(), lambda *what: told.append(what))
    assert next(items) == 1
    with pytest.raises(CalibrationError, match=r"^the source$"):
        next(items)
    assert told == []


def test_other_errors_are_no_bad_items():
    with pytest.raises(ZeroDivisionError):
        list(usable([lambda: 1 // 0], lambda *_: None))
