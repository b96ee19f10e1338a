"""A model that fixes its first axis: an array of exactly the input's shape is one input, whatever the axis counts."""

import numpy as np
import pytest

from calibrators.data.batching import batches
from calibrators.data.open import open_data
from calibrators.data.samples import InputSpec

FLOAT = np.dtype(np.float32)


def pictures(count, shape):
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(np.float32)


def runs(data, inputs, **options):
    return [sample.feeds for sample in batches(open_data(data, inputs, **options), inputs, 1)]


def folder_of(path, rows):
    for i, row in enumerate(rows):
        np.savez(path / f"{i:03}.npz", x=row)
    return path


@pytest.mark.parametrize("shape", [(3, 8, 8), (4, 6), (2, 3, 5, 5), (7,)])
@pytest.mark.parametrize("kind", ["folder", "items", "arrays"])
def test_each_is_one_input(tmp_path, shape, kind):
    rows = pictures(10, shape)
    inputs = (InputSpec("x", FLOAT, shape),)
    data = {"folder": lambda: folder_of(tmp_path, rows), "items": lambda: [{"x": row} for row in rows]}
    source = data.get(kind, lambda: list(rows))()
    opened = open_data(source, inputs)
    assert [sample.count for sample in opened] == [1] * 10
    assert not any(sample.joinable for sample in opened)
    for fed, row in zip(runs(source, inputs), rows, strict=True):
        np.testing.assert_array_equal(fed["x"], row)
    assert len(runs(source, inputs, limit=4)) == 4


def test_an_input_beside_that_fixes_nothing(tmp_path):
    inputs = (InputSpec("x", FLOAT, (3, 8, 8)), InputSpec("scale", FLOAT, ()))
    rows = pictures(5, (3, 8, 8))
    items = [{"x": row, "scale": np.float32(2)} for row in rows]
    for fed, row in zip(runs(items, inputs), rows, strict=True):
        np.testing.assert_array_equal(fed["x"], row)


@pytest.mark.parametrize("count", [8, 16])
def test_more_rows_than_the_axis_has_are_cut_as_before(tmp_path, count):
    """A batch of four: a file with more samples is cut into batches."""
    rows = pictures(count, (3, 5, 5))
    np.savez(tmp_path / "d.npz", x=rows)
    fed = runs(tmp_path / "d.npz", (InputSpec("x", FLOAT, (4, 3, 5, 5)),))
    np.testing.assert_array_equal(np.concatenate([each["x"] for each in fed]), rows)


def test_a_stack_of_whole_inputs(tmp_path):
    rows = pictures(6, (3, 8, 8))
    np.savez(tmp_path / "d.npz", x=rows)
    fed = runs(tmp_path / "d.npz", (InputSpec("x", FLOAT, (3, 8, 8)),))
    np.testing.assert_array_equal(np.stack([each["x"] for each in fed]), rows)


def test_any_first_axis_is_a_batch_as_before():
    opened = open_data([{"x": pictures(3, (8, 8))}], (InputSpec("x", FLOAT, ("N", 8, 8)),))
    assert [(sample.count, sample.joinable) for sample in opened] == [(3, True)]
