"""Labels stay tied to their samples, whatever is skipped, cut or joined."""

import json

import numpy as np
import pytest
from PIL import Image

from calibrators.data.batching import batches
from calibrators.data.label_files import read_labels
from calibrators.data.labels import Labelled
from calibrators.data.open import open_data
from calibrators.data.samples import InputSpec
from calibrators.errors import CalibrationError

X = (InputSpec("x", np.dtype(np.float32), ("N", 2)),)
PICTURE = (InputSpec("x", np.dtype(np.float32), (1, 3, 8, 8)),)
COUNT = 6


def rows(count=COUNT):
    """Samples whose values tell their place."""
    return np.repeat(np.arange(count, dtype=np.float32), 2).reshape(count, 2)


def places(samples):
    """(place, label) of all samples."""
    return [(float(x[0]), label) for s in samples for x, label in zip(s.feeds["x"], s.labels, strict=True)]


def matching(count=COUNT):
    return [(float(n), 10 * n) for n in range(count)]


def labels():
    return np.arange(COUNT) * 10


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "d.npz", x=rows(), y=labels())
    return tmp_path / "d.npz"


def test_an_array_of_the_data_holds_labels_and_is_not_ignored(data, caplog):
    assert places(open_data(Labelled(data, "y"), X)) == matching()
    assert not caplog.text
    assert next(iter(open_data(data, X))).labels == ()
    assert "'y' is not an input of the model: ignored" in caplog.text


@pytest.mark.parametrize("name", ["y.npy", "y.npz", "y.csv"])
def test_a_file_in_the_order_of_the_samples(data, name):
    path = data.with_name(name)
    if name == "y.csv":
        path.write_text("label\n" + "\n".join(map(str, labels())))
    else:
        (np.save if name == "y.npy" else np.savez)(path, labels())
    assert places(open_data(Labelled(data, path), X)) == matching()
    assert places(open_data(Labelled(data, str(path)), X, limit=3)) == matching(3)


def test_python_gives_labels_too(data):
    assert places(open_data(Labelled(data, list(labels())), X)) == matching()


def test_wrong_numbers_and_names_are_told(data):
    with pytest.raises(CalibrationError, match="5 labels for 6 samples"):
        open_data(Labelled(data, range(5)), X)
    with pytest.raises(CalibrationError, match=r"labels 'z': no such file, and .* holds 'y'"):
        open_data(Labelled(data, "z"), X)
    with pytest.raises(CalibrationError, match="labels of type int"):
        open_data(Labelled(data, 5), X)


def test_bad_samples_take_their_labels_with_them(tmp_path):
    broken = rows()
    broken[2] = np.nan
    np.savez(tmp_path / "d.npz", x=broken, y=labels())
    kept = [pair for pair in matching() if pair[0] != 2]
    for given in ("y", labels(), list(labels())):
        found = open_data(Labelled(tmp_path / "d.npz", given), X, on_bad=lambda *_: None)
        assert places(found) == kept
    items = [{"x": x[None]} for x in broken]
    assert places(open_data(Labelled(items, labels()), X, on_bad=lambda *_: None)) == kept


def test_batches_keep_the_labels_of_their_samples(data):
    joined = list(batches(open_data(Labelled(data, "y"), X), X, 4))
    assert [len(batch.labels) for batch in joined] == [4, 2]
    assert places(joined) == matching()
    fixed = (InputSpec("x", np.dtype(np.float32), (3, 2)),)
    assert places(batches(open_data(Labelled(data, "y"), X), fixed, 1)) == matching()


@pytest.mark.parametrize(
    "item",
    [
        lambda x, y: (x, y),
        lambda x, y: ({"x": x}, y),
        lambda x, y: ([x], list(y)),
    ],
)
def test_data_loaders_yield_labels_beside_inputs(item):
    loader = [item(rows()[n : n + 2], labels()[n : n + 2]) for n in (0, 2, 4)]
    assert places(open_data(loader, X)) == matching()
    assert places(open_data(loader, X, limit=5)) == matching(5)


def test_several_labels_of_a_sample_and_dictionaries():
    pair = (rows(2), np.arange(2), np.arange(2) + 5)
    (batch,) = open_data([pair], X)
    assert batch.labels == ({0: 0, 1: 5}, {0: 1, 1: 6})
    (batch,) = open_data(Labelled([{"x": rows(2), "y": [7, 8]}], "y"), X)
    assert batch.labels == (7, 8)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.png", "sub/a.png", "sub/c.png")):
        Image.new("RGB", (16, 8), (n, n, n)).save(folder / name)
    return folder


def picture_labels(source, limit=None):
    found = open_data(source, PICTURE, preprocess="raw", limit=limit)
    return {float(sample.feeds["x"].max()): sample.labels[0] for sample in found}


@pytest.mark.parametrize("header", ["", "file,label\n"])
def test_a_table_names_pictures(pictures, header):
    table = pictures.with_name("labels.csv")
    table.write_text(header + "a.png,3\nb.png,dog\nsub/a.png,1.5\nc.png,2\n")
    assert picture_labels(Labelled(pictures, table)) == {0: 3, 1: "dog", 2: 1.5, 3: 2}
    assert picture_labels(Labelled(pictures, table), limit=2) == {0: 3, 2: 1.5}
    table.write_text("a.png,3\n")
    with pytest.raises(CalibrationError, match=r"no label for 2 of 4 files: b\.png, c\.png"):
        open_data(Labelled(pictures, table), PICTURE)


def test_coco_boxes_are_moved_into_the_input(pictures):
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(("a.png", "b.png", "c.png"))],
        "categories": [{"id": 7}, {"id": 3}],
        "annotations": [
            {"image_id": 0, "category_id": 7, "bbox": [6, 2, 4, 4]},
            {"image_id": 0, "category_id": 3, "bbox": [0, 0, 3, 3], "iscrowd": 1},
        ],
    }
    path = pictures.with_name("coco.json")
    path.write_text(json.dumps(content))
    label = picture_labels(Labelled(pictures, path))[0]
    # 16 x 8 pixels: the crop of 8 x 8 begins at 4, so the second box lies outside.
    assert label["boxes"].tolist() == [[2, 2, 6, 6]]
    assert (label["classes"].tolist(), label["indices"].tolist()) == ([7], [1])
    assert label["crowd"].tolist() == [False]


COCO = {
    "images": [{"id": 4, "file_name": "a.png"}],
    "categories": [{"id": 7}],
    "annotations": [{"image_id": 4, "category_id": 7, "bbox": [0, 0, 3, 3]}],
}
BOX = COCO["annotations"][0]


@pytest.mark.parametrize(
    ("part", "entries", "told"),
    [
        (
            "annotations",
            [BOX, BOX | {"image_id": 5}],
            "1 of 2 annotations have image_ids that are not in the list of images: 5",
        ),
        ("annotations", [BOX | {"category_id": 8}], "category_ids that are not in the list of categories: 8"),
        ("annotations", [{"image_id": 4, "category_id": 7}], r"annotations\[0\] has no 'bbox'"),
        ("annotations", [BOX | {"bbox": [0, 0, 3]}], r"bbox \[0, 0, 3\]: expected \[x, y, width, height\]"),
        ("images", [{"id": 4}], r"images\[0\] has no 'file_name'"),
        ("images", {"4": "a.png"}, "'images' is no list"),
        ("categories", ["dog"], r"categories\[0\] has no 'id'"),
    ],
)
def test_coco_files_that_do_not_hold_together_are_refused(tmp_path, part, entries, told):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(COCO | {part: entries}))
    with pytest.raises(CalibrationError, match=f"coco.json.*{told}"):
        read_labels(path, named=True)


def test_an_empty_coco_file_is_told(tmp_path):
    path = tmp_path / "coco.json"
    path.touch()
    with pytest.raises(CalibrationError, match=r"coco.json is empty"):
        read_labels(path, named=True)


@pytest.mark.parametrize(
    ("name", "text"),
    [("x.json", "[]"), ("x.json", "{"), ("x.csv", ""), ("x.npy", "no array"), ("x.txt", "1")],
)
def test_files_of_another_form_are_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(CalibrationError, match=name):
        read_labels(path, named=True)
