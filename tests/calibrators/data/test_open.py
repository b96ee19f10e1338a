"""Every form of calibration data, good and bad."""

import logging
import tracemalloc
from collections import UserDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, integer_dtypes
from PIL import Image

from calibrators.data.batching import batches
from calibrators.data.fit import fit
from calibrators.data.open import open_data
from calibrators.data.samples import InputSpec
from calibrators.errors import CalibrationError


def spec(name, *shape, dtype="float32"):
    return InputSpec(name, np.dtype(dtype), shape)


X = (spec("x", "N", 3),)
TWO = (spec("ids", "N", "L", dtype="int64"), spec("mask", "N", "L", dtype="bool"))


def rows(n, width=3):
    return np.arange(n * width, dtype=np.float32).reshape(n, width)


def read(source, inputs=X, **options):
    return list(open_data(source, inputs, **options))


def fails(source, inputs=X, **options):
    with pytest.raises(CalibrationError) as caught:
        read(source, inputs, **options)
    return str(caught.value)


# Array files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_streams_samples(tmp_path, save):
    path = tmp_path / "data.npz"
    save(path, x=rows(4), y=np.arange(4))
    source = open_data(path, X)
    assert source.total == 4
    found = list(source)
    assert [s.name for s in found] == [f"{path}[{i}]" for i in range(4)]
    assert np.array_equal(np.concatenate([s.feeds["x"] for s in found]), rows(4))
    assert all(set(s.feeds) == {"x"} and s.count == 1 for s in found)
    assert len(list(source)) == 4, "a second pass starts anew"


def test_arrays_that_are_no_inputs_are_ignored_with_a_warning(tmp_path, caplog):
    np.savez(tmp_path / "data.npz", x=rows(2), labels=np.arange(5))
    assert len(read(tmp_path / "data.npz")) == 2
    assert "'labels'" in caplog.text


def test_npy_and_unnamed_arrays_serve_a_model_with_one_input(tmp_path):
    np.save(tmp_path / "a.npy", rows(2))
    np.savez(tmp_path / "b.npz", rows(2))
    for name in ("a.npy", "b.npz"):
        assert [s.feeds["x"].shape for s in read(tmp_path / name)] == [(1, 3), (1, 3)]
    assert "holds one array" in fails(tmp_path / "a.npy", TWO)


def test_fortran_and_big_endian_arrays(tmp_path):
    np.save(tmp_path / "f.npy", np.asfortranarray(rows(4)))
    np.save(tmp_path / "b.npy", rows(4).astype(">f8"))
    for name in ("f.npy", "b.npy"):
        found = np.concatenate([s.feeds["x"] for s in read(tmp_path / name)])
        assert found.dtype == np.dtype("float32")
        assert np.array_equal(found, rows(4))


def test_one_axis_more_holds_one_whole_input_a_row(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((5, 2, 3), np.float32))
    found = read(tmp_path / "a.npy")
    assert [s.feeds["x"].shape for s in found] == [(2, 3)] * 5
    assert [s.feeds["x"].shape for s in batches(found, X, 4)] == [(2, 3)] * 5


def test_one_axis_less_is_one_sample(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3, np.float32))
    assert [s.feeds["x"].shape for s in read(tmp_path / "a.npy")] == [(1, 3)]


def test_inputs_without_axes_are_shared_or_one_a_sample(tmp_path):
    inputs = (*X, spec("k", dtype="int64"))
    np.savez(tmp_path / "shared.npz", x=rows(3), k=7)
    np.savez(tmp_path / "each.npz", x=rows(3), k=np.arange(3))
    assert [int(s.feeds["k"]) for s in read(tmp_path / "shared.npz", inputs)] == [7, 7, 7]
    assert [int(s.feeds["k"]) for s in read(tmp_path / "each.npz", inputs)] == [0, 1, 2]
    assert read(tmp_path / "shared.npz", inputs)[0].feeds["k"].shape == ()


def test_a_fixed_batch_size_is_filled_from_samples(tmp_path):
    inputs = (spec("x", 2, 3),)
    np.save(tmp_path / "a.npy", rows(4))
    made = list(batches(open_data(tmp_path / "a.npy", inputs), inputs, 1))
    assert [b.feeds["x"].tolist() for b in made] == [rows(4)[:2].tolist(), rows(4)[2:].tolist()]


def test_a_model_that_gives_no_shape(tmp_path):
    inputs = (InputSpec("x", np.dtype("float32"), None),)
    np.save(tmp_path / "a.npy", np.ones((4, 2, 5), np.float32))
    assert [s.feeds["x"].shape for s in read(tmp_path / "a.npy", inputs)] == [(1, 2, 5)] * 4
    assert [s.feeds["x"].shape for s in read(tmp_path, inputs)] == [(4, 2, 5)]


def test_a_directory_is_read_no_further_than_the_limit(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", rows(2))
    (tmp_path / "3.npy").write_text("damaged")
    assert len(read(tmp_path, limit=5)) == 5
    assert "3.npy" in fails(tmp_path)


def test_limit_takes_the_first_ones(tmp_path):
    np.save(tmp_path / "a.npy", rows(9))
    source = open_data(tmp_path / "a.npy", X, limit=4)
    assert source.total == 4
    assert np.array_equal(np.concatenate([s.feeds["x"] for s in source]), rows(4))
    assert open_data(tmp_path / "a.npy", X, limit=40).total == 9


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_memory_does_not_grow_with_the_file(tmp_path, save):
    save(tmp_path / "big.npz", x=np.zeros((400, 25_000), np.float32))
    tracemalloc.start()
    assert sum(1 for _ in open_data(tmp_path / "big.npz", (spec("x", "N", 25_000),))) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, "the array has 40 MB"


def test_memory_does_not_grow_with_a_lone_array(tmp_path):
    np.save(tmp_path / "big.npy", np.zeros((400, 25_000), np.float32))
    tracemalloc.start()
    assert sum(1 for _ in open_data(tmp_path / "big.npy", (spec("x", "N", 25_000),))) == 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6, "the array has 40 MB"


# Directories of arrays


def test_directory_mixes_samples_batches_and_shapes(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / ".hidden").mkdir()
    for path, shape in {"a.npy": (2, 4), "b.NPZ": (5,), "deep/c.npz": (1, 6), ".d.npy": (9, 9, 9)}.items():
        with (tmp_path / path).open("wb") as file:
            (np.save if path.endswith("npy") else np.savez)(file, np.ones(shape, np.float32))
    np.save(tmp_path / ".hidden" / "e.npy", np.ones(()))
    (tmp_path / "README.txt").write_text("not data")
    source = open_data(tmp_path, (spec("x", "N", None),))
    assert source.total == 4
    assert [s.feeds["x"].shape for s in source] == [(1, 4), (1, 4), (1, 5), (1, 6)]


def test_directory_files_that_hold_a_graph_stay_whole(tmp_path):
    inputs = (spec("nodes", "n", 3), spec("edges", 2, "e", dtype="int64"))
    for i, (n, e) in enumerate([(5, 8), (2, 2)]):
        np.savez(tmp_path / f"{i}.npz", nodes=rows(n), edges=np.zeros((2, e), np.int32))
    found = read(tmp_path, inputs)
    assert [s.feeds["nodes"].shape for s in found] == [(5, 3), (2, 3)]
    assert len(list(batches(found, inputs, 2))) == 2


def test_directory_files_with_unlike_first_axes_stay_whole(tmp_path):
    inputs = (spec("nodes", "n", 3), spec("edges", "e", 2, dtype="int64"))
    np.savez(tmp_path / "a.npz", nodes=rows(5), edges=np.zeros((8, 2), np.int64))
    assert [s.feeds["edges"].shape for s in read(tmp_path, inputs)] == [(8, 2)]


def test_directory_files_with_a_lone_sequence_stay_whole(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(17, np.float32))
    assert [s.feeds["x"].shape for s in read(tmp_path, (spec("x", "T"),))] == [(17,)]


def test_directory_warns_once_of_an_unused_array(tmp_path, caplog):
    for i in range(3):
        np.savez(tmp_path / f"{i}.npz", x=rows(1), y=np.arange(1))
    read(tmp_path)
    assert len([r for r in caplog.records if "'y'" in r.message]) == 1


# Python iterables


class Tensor:
    """As another library's: an array only by its own methods."""

    def __init__(self, array):
        self.array = array
        self.ndim = array.ndim

    def detach(self):
        return Tensor(self.array)

    def cpu(self):
        return self

    def numpy(self):
        return self.array


@pytest.mark.parametrize(
    "item",
    [
        {"x": rows(2)},
        {"x": rows(2), "label": 3},
        UserDict(x=rows(2)),
        {"x": rows(2).tolist()},
        rows(2),
        rows(2).tolist(),
        Tensor(rows(2)),
        (rows(2), np.array([1, 2])),
        [Tensor(rows(2)), Tensor(np.array([1, 2]))],
        ({"x": rows(2)}, "label"),
        [Tensor(rows(2))],
    ],
)
def test_items_of_an_iterable(item):
    (sample,) = read([item])
    assert sample.count == 2
    assert sample.feeds["x"].dtype == np.float32
    assert np.array_equal(sample.feeds["x"], rows(2))


def test_items_without_batch_axis_get_one():
    assert [s.feeds["x"].shape for s in read(iter(rows(3)))] == [(1, 3)] * 3


def test_a_list_can_be_read_again_and_an_iterator_not():
    again = open_data([rows(2)], X)
    assert [len(list(again)), len(list(again))] == [1, 1]
    once = open_data(iter([rows(2)]), X)
    assert len(list(once)) == 1
    with pytest.raises(CalibrationError, match=r"no samples.*only once"):
        list(once)


def test_limit_cuts_the_last_batch():
    assert [s.count for s in read([rows(4)] * 3, limit=6)] == [4, 2]
    assert [s.feeds["x"].shape for s in read([rows(4)] * 3, limit=6)] == [(4, 3), (2, 3)]


def test_limit_reads_no_more_than_it_needs():
    def endless():
        while True:
            yield rows(1)

    assert len(read(endless(), limit=3)) == 3


IDS, MASK, LABELS = np.ones((2, 5), np.int32), np.zeros((2, 5), np.int64), np.zeros(2)


@pytest.mark.parametrize(
    "item",
    [
        (IDS, MASK),
        [IDS, MASK],
        (IDS, MASK, LABELS),
        (IDS, MASK, LABELS, "cat.jpg"),
        ((IDS, MASK), LABELS),
        [[IDS, MASK], LABELS],
        {"mask": MASK, "ids": IDS, "labels": LABELS},
        ({"mask": MASK, "ids": IDS}, LABELS),
    ],
)
def test_several_inputs_in_order_or_by_name(item):
    (sample,) = read([item], TWO)
    assert sample.feeds["ids"].all()
    assert not sample.feeds["mask"].any()
    assert sample.count == 2


@pytest.mark.parametrize("item", [(rows(2),), (rows(2), 1), ((rows(2),), 1), [[rows(2)], [1, 2]]])
def test_one_input_beside_labels(item):
    (sample,) = read([item])
    assert sample.feeds["x"].tolist() == rows(2).tolist()


@pytest.mark.parametrize("item", [(IDS,), ((IDS,), LABELS), (), (1, 2)])
def test_too_few_inputs(item):
    assert f"is a tuple of {len(item)}, the model takes several inputs: 'ids'" in fails([item], TWO)


def test_several_inputs_by_name():
    item = {"ids": np.ones((2, 5), np.int32), "mask": np.ones((2, 5), np.int64)}
    (sample,) = read([item], TWO)
    assert {n: a.dtype.name for n, a in sample.feeds.items()} == {"ids": "int64", "mask": "bool"}
    assert "Give {input name: array}" in fails([np.ones((2, 5), np.int64)], TWO)
    assert "nothing for input 'mask', only for 'ids'" in fails([{"ids": item["ids"]}], TWO)


@pytest.mark.parametrize("source", [3, {"x": rows(2)}])
def test_sources_of_a_wrong_type(source):
    assert type(source).__name__ in fails(source)


def test_ragged_and_empty_items():
    assert "item 0" in fails([[[1.0], [1.0, 2.0]]])
    assert "no samples" in fails([np.ones((0, 3), np.float32)])
    assert "no samples" in fails([])


def test_torch_tensors_and_loaders():
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("torch.utils.data")
    x = torch.arange(12, dtype=torch.float32).reshape(4, 3).requires_grad_()
    loader = utils.DataLoader(utils.TensorDataset(x, torch.zeros(4)), batch_size=2)
    assert [s.feeds["x"].tolist() for s in read(loader)] == [x[:2].tolist(), x[2:].tolist()]
    assert "BFloat16" in fails([x.to(torch.bfloat16)])


class Sentences:
    """A PyTorch data set of (inputs by name, label), of several lengths."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        length = 4 + index // 2
        inputs = {"ids": np.full(length, index, np.int32), "mask": np.ones(length, np.int64)}
        return inputs, index


@pytest.mark.parametrize("workers", [0, 1])
def test_torch_loaders_of_several_inputs_and_shapes(workers):
    utils = pytest.importorskip("torch.utils.data")
    loader = utils.DataLoader(Sentences(), batch_size=2, num_workers=workers)
    found = read(loader, TWO)
    assert [s.count for s in found] == [2, 2, 2]
    assert [s.feeds["ids"].shape for s in found] == [(2, 4), (2, 5), (2, 6)]
    assert {n: a.dtype.name for n, a in found[0].feeds.items()} == {"ids": "int64", "mask": "bool"}
    assert [s.feeds["ids"][:, 0].tolist() for s in found] == [[0, 1], [2, 3], [4, 5]]


def test_memory_does_not_grow_with_a_generator():
    tracemalloc.start()
    source = (np.zeros((1, 100_000), np.float32) for _ in range(200))
    assert (
        sum(1 for _ in batches(open_data(source, (spec("x", "N", None),)), (spec("x", "N", None),), 4)) == 50
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6, "the arrays have 80 MB, a batch of four 1.6"


# What is refused


def test_missing_and_unusable_paths(tmp_path):
    assert "nowhere: no such file or directory" in fails(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    assert "the directory is empty" in fails(tmp_path / "a")
    (tmp_path / "a" / "x.txt").write_text("")
    assert "none of its 1 files" in fails(str(tmp_path / "a"))
    assert ".txt" in fails(tmp_path / "a" / "x.txt")


def test_pictures_and_arrays_in_one_directory(tmp_path):
    np.save(tmp_path / "a.npy", rows(1))
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    message = fails(tmp_path)
    assert "b.png" in message
    assert "a.npy" in message


def test_names_that_do_not_fit_list_both_sides(tmp_path):
    np.savez(tmp_path / "a.npz", image=rows(1), y=rows(1))
    message = fails(tmp_path / "a.npz")
    assert "no array for input 'x'" in message
    assert "'image', 'y'" in message
    assert "'x' (float32 [N, 3])" in message


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((2, 4), np.float32), "[2, 4], the model takes [N, 3]"),
        (np.ones((1, 1, 2, 3), np.float32), "[1, 1, 2, 3], the model takes [N, 3]"),
        (np.ones((0, 3), np.float32), "no samples"),
        (np.ones((2, 3), np.complex64), "holds complex64 values, the model takes float32"),
        (np.array([["a", "b", "c"]]), "holds <U1 values"),
        (np.array([[1, "a", None]], object), "Python objects"),
        (np.zeros(2, [("a", "f4")]), "records"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path, array, words):
    path = tmp_path / "a.npz"
    np.savez(path, x=array)
    message = fails(path)
    assert words in message
    assert str(path) in message


def test_a_single_value_is_no_sample_of_a_vector(tmp_path):
    np.save(tmp_path / "a.npy", np.float32(1))
    assert "[], the model takes [N, 3]" in fails(tmp_path / "a.npy")


def test_different_sample_counts_are_listed(tmp_path):
    np.savez(tmp_path / "a.npz", ids=np.ones((3, 5), np.int64), mask=np.ones((2, 5), bool))
    assert "'ids' 3, 'mask' 2" in fails(tmp_path / "a.npz", TWO)
    assert "'ids' 3, 'mask' 2" in fails(tmp_path, TWO)


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "Inf"), (-np.inf, "Inf")])
def test_values_that_are_not_finite_are_located(tmp_path, value, word):
    data = rows(4)
    data[2, 1] = value
    np.savez(tmp_path / "a.npz", x=data)
    message = fails(tmp_path / "a.npz")
    assert f"a.npz[2]: input 'x' holds {word} at index [0, 1]" in message


def test_damaged_files_are_named(tmp_path):
    np.savez(tmp_path / "whole.npz", x=rows(1000))
    data = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "short.npz").write_bytes(data[:5000])
    flipped = bytearray(data)
    flipped[9000] ^= 255
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "whole.npy", rows(1000))
    (tmp_path / "short.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:5000])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "header.npy").write_bytes(
        (tmp_path / "whole.npy").read_bytes().replace(b"(1000, 3)", b"(1000, 3(")
    )
    for name in ("short.npz", "flipped.npz", "text.npz", "short.npy", "empty.npy", "header.npy"):
        assert f"{name}: cannot be read, or is damaged" in fails(tmp_path / name)


def test_a_pickle_is_not_loaded(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"\x80\x04K\x01.")
    assert "a.npy" in fails(tmp_path / "a.npy")


@pytest.mark.parametrize("limit", [0, -3])
def test_a_limit_below_one(limit):
    assert "at least 1" in fails([rows(1)], limit=limit)


# Bad samples that are skipped


@pytest.fixture
def skipped():
    """What was skipped: the messages, and the number of samples."""

    class Skipped(list):
        def __call__(self, error, samples):
            self.append(str(error))
            assert samples == 1

    return Skipped()


def values(samples):
    return [s.feeds["x"][0, 0].item() for s in samples]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_bad_rows_are_skipped(tmp_path, skipped, save):
    data = rows(5)
    data[1, 2], data[4, 0] = np.nan, np.inf
    save(tmp_path / "a.npz", x=data)
    source = open_data(tmp_path / "a.npz", X, on_bad=skipped)
    assert source.total == 5
    assert values(source) == [0, 6, 9]
    assert [text.split(":")[0] for text in skipped] == [f"{tmp_path}/a.npz[{i}]" for i in (1, 4)]


def test_several_inputs_stay_together_after_a_bad_row(tmp_path, skipped):
    inputs = (spec("x", "N", 3), spec("y", "N", 2))
    data = rows(6)
    data[2, 0] = np.nan
    np.savez_compressed(tmp_path / "a.npz", x=data, y=rows(6, 2))
    found = read(tmp_path / "a.npz", inputs, on_bad=skipped)
    assert [(s.feeds["x"][0, 0], s.feeds["y"][0, 0]) for s in found] == [
        (3 * i, 2 * i) for i in (0, 1, 3, 4, 5)
    ]


def test_rows_that_a_truncated_file_lacks_are_skipped(tmp_path, skipped):
    np.save(tmp_path / "a.npy", rows(10))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:-20])
    assert len(read(tmp_path / "a.npy", on_bad=skipped)) == 8
    assert "a.npy: cannot be read, or is damaged (it ends in row 8 of 10)" in skipped[0]
    assert len(skipped) == 2


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_with_a_wrong_checksum_is_not_used_at_all(tmp_path, skipped, save):
    (tmp_path / "d").mkdir()
    noise = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    for name in ("a", "b"):
        save(tmp_path / "d" / f"{name}.npz", x=noise)
    torn = bytearray((tmp_path / "d" / "a.npz").read_bytes())
    torn[400] ^= 1
    (tmp_path / "d" / "a.npz").write_bytes(torn)
    found = read(tmp_path / "d", on_bad=skipped)
    assert {s.name.split("[")[0] for s in found} == {f"{tmp_path}/d/b.npz"}
    assert len(skipped) == 1
    assert "a.npz: cannot be read, or is damaged" in skipped[0]


def test_bad_files_of_a_directory_are_skipped(tmp_path, skipped):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.full((1, 3), i, np.float32))
    (tmp_path / "0.npy").write_bytes(b"nothing")
    np.save(tmp_path / "2.npy", np.ones((1, 7), np.float32))
    assert values(read(tmp_path, on_bad=skipped)) == [1, 3]
    assert [text.split(":")[0] for text in skipped] == [f"{tmp_path}/{i}.npy" for i in (0, 2)]


def test_a_file_that_vanishes_is_skipped(tmp_path, skipped):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full((1, 3), i, np.float32))
    source = open_data(tmp_path, X, on_bad=skipped)
    (tmp_path / "1.npy").unlink()
    assert values(source) == [0, 2]
    assert "1.npy: cannot be read" in skipped[0]


def test_bad_pictures_are_skipped(tmp_path, skipped):
    inputs = (spec("x", "N", 3, 4, 4),)
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:45])
    found = read(tmp_path, inputs, preprocess="raw", on_bad=skipped)
    assert [s.feeds["x"][0, 0, 0, 0] for s in found] == [0, 2]
    assert "1.png: cannot be read as an image" in skipped[0]


def test_bad_items_of_an_iterable_are_skipped(skipped):
    items = [rows(1), None, np.ones((1, 9)), np.full((1, 3), np.nan), {"z": rows(1)}, rows(2)]
    assert [s.count for s in read(iter(items), on_bad=skipped)] == [1, 2]
    assert [text.split(":")[0].split(" of")[0] for text in skipped] == [f"item {i}" for i in (1, 2, 3, 4)]


def test_an_iterable_that_raises_is_no_bad_sample(skipped):
    def source():
        yield rows(1)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        read(source(), on_bad=skipped)
    assert skipped == []


def test_a_limit_counts_only_what_is_used(skipped):
    items = [np.full((1, 3), value, np.float32) for value in (np.nan, 1, np.nan, 2, 3)]
    assert values(read(items, limit=2, on_bad=skipped)) == [1, 2]


def test_if_every_sample_is_bad_that_is_an_error(tmp_path, skipped):
    np.save(tmp_path / "a.npy", np.full((3, 3), np.nan, np.float32))
    message = fails(tmp_path / "a.npy", on_bad=skipped)
    assert "no sample can be used. The first error: " in message
    assert "a.npy[0]: input 'x' holds NaN" in message
    (tmp_path / "a.npy").write_bytes(b"")
    assert "a.npy: cannot be read" in fails(tmp_path, on_bad=skipped)


def test_without_skipping_an_error_says_that_it_is_possible(tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 3), np.nan, np.float32))
    assert fails(tmp_path / "a.npy").endswith("(or skip bad samples: --skip-bad-samples)")


# Types


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ("float64", "float32"),
        ("float32", "float16"),
        ("float16", "float64"),
        ("uint8", "float32"),
        ("int64", "float32"),
        ("int64", "int32"),
        ("int32", "uint8"),
        ("bool", "int64"),
        ("bool", "float32"),
        ("int64", "bool"),
    ],
)
def test_safe_types_are_cast(have, want):
    result = fit(np.array([[0, 1, 1]], have), spec("x", "N", 3, dtype=want), "here", True)
    assert result.dtype == np.dtype(want)
    assert result.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize(
    ("have", "want"), [("float32", "int64"), ("float64", "bool"), ("complex64", "float32"), ("U1", "int64")]
)
def test_other_types_are_refused(have, want):
    with pytest.raises(CalibrationError, match=f"here: .*'x'.*{want}"):
        fit(np.zeros((1, 3), have), spec("x", "N", 3, dtype=want), "here", True)


@pytest.mark.parametrize(
    ("values", "have", "want"),
    [
        ([-1], "int64", "uint8"),
        ([300], "int32", "uint8"),
        ([2], "int64", "bool"),
        ([2**63], "uint64", "int64"),
        ([1e6], "float32", "float16"),
        ([65535], "uint16", "float16"),
        ([1e300], "float64", "float32"),
    ],
)
def test_values_beyond_the_type_are_refused(values, have, want):
    with pytest.raises(CalibrationError, match=r"here: .*'x'"):
        fit(np.array(values, have), spec("x", 1, dtype=want), "here")


@settings(max_examples=200)
@given(arrays(integer_dtypes(endianness="="), (3,)), integer_dtypes(endianness="="))
def test_integers_keep_their_values_or_are_refused(array, dtype):
    try:
        result = fit(array, spec("x", 3, dtype=dtype), "here")
    except CalibrationError:
        info = np.iinfo(dtype)
        assert min(array.tolist()) < info.min or max(array.tolist()) > info.max
    else:
        assert result.dtype == dtype
        assert result.tolist() == array.tolist()


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 9))
def test_limit_and_batches_together(limit, size):
    made = list(batches(open_data([rows(1)] * 4, X, limit=limit), X, size))
    assert sum(b.count for b in made) == min(limit, 4)


def test_a_good_run_logs_nothing(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", x=rows(2))
    with caplog.at_level(logging.INFO):
        read(tmp_path / "a.npz")
    assert caplog.text == ""


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_buffer_that_is_filled_again_and_again(batch_size):
    buffer = np.zeros((1, 3), np.float32)
    inputs = (InputSpec("x", np.dtype(np.float32), ("N", 3)),)

    def source():
        for number in range(8):
            buffer[:] = number
            yield {"x": buffer}

    samples = list(batches(open_data(source(), inputs), inputs, batch_size))
    seen = np.concatenate([sample.feeds["x"][:, 0] for sample in samples])
    assert seen.tolist() == list(range(8))
