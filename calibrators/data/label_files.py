"""Read labels from files.

===========  ==========================================================================================
``.npy``     one label a row, in the order of the samples
``.npz``     the same; the file holds one array, or one that is called ``labels``
``.csv``     file name and label, for a folder of pictures; or one label a line, in the order of the
             samples. A header may come first
``.json``    COCO annotations: pictures by file name; the label is a dictionary of ``boxes`` (``[n, 4]``:
             x1, y1, x2, y2 in pixels of the picture), ``classes`` (category ids), ``indices`` (places in
             the sorted list of categories), ``categories`` (all ids, sorted) and ``crowd``
===========  ==========================================================================================
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.data.labels import LabelBook, given_labels
from calibrators.data.npfile import read_headers, read_whole
from calibrators.errors import CalibrationError, shorten


def open_labels(labels: Any, held: Sequence[str] = (), *, named: bool) -> LabelBook | None:
    """Open labels that lie beside the data; None if there are none.

    Args:
        labels: as in `Labelled`.
        held: the arrays of the data that are no inputs, for the message if there is no such file.
        named: whether samples are files, which labels may name.

    Raises:
        CalibrationError: the labels cannot be read.
    """
    if labels is None:
        return None
    if not isinstance(labels, str | os.PathLike):
        return given_labels(labels)
    path = Path(labels)
    if not path.is_file():
        raise CalibrationError(
            f"labels '{labels}': no such file, and no array of the data (which holds "
            f"{', '.join(map(repr, held)) or 'inputs only'}): give .npy, .npz, .csv or COCO .json, or the "
            "name of an array in the .npz data"
        )
    return read_labels(path, named=named)


def read_labels(path: Path, *, named: bool) -> LabelBook:
    """Read a file of labels.

    Args:
        path: the file.
        named: whether samples are files, which labels may name.

    Raises:
        CalibrationError: the file cannot be read, or has another form.
    """
    suffix = path.suffix.lower()
    if suffix not in _READERS:
        raise CalibrationError(f"{path}: '{suffix}' files are not read as labels: give {', '.join(_READERS)}")
    try:
        return _READERS[suffix](path, named)
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise CalibrationError(f"{path}: cannot be read as labels ({error!r})") from error


def _arrays(path: Path, _: bool) -> LabelBook:
    keys = list(read_headers(path))
    key = keys[0] if len(keys) == 1 else "labels"
    if key not in keys:
        raise CalibrationError(
            f"{path} holds several arrays, {', '.join(keys)}, none of which is called 'labels': rename one"
        )
    return LabelBook(str(path), by_place=list(read_whole(path, key)))


def _table(path: Path, named: bool) -> LabelBook:
    text = path.read_text("utf-8-sig")
    first = text.partition("\n")[0]
    mark = next((mark for mark in ("\t", ";") if mark in first and "," not in first), ",")
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=mark) if row]
    if not rows:
        raise CalibrationError(f"{path} holds no labels")
    if not named:
        labels = [_value(row[-1]) for row in rows]
        is_header = isinstance(labels[0], str) and not all(isinstance(label, str) for label in labels)
        return LabelBook(str(path), by_place=labels[is_header or labels[0] in ("label", "labels", "text") :])
    if short := next((row for row in rows if len(row) < 2), None):
        raise CalibrationError(f"{path}: the line {','.join(short)!r} has no label: give file name, label")
    return LabelBook(str(path), by_name={row[0]: _value(row[1]) for row in rows})


def _value(text: str) -> Any:
    """Return a whole number, a number or a text, whichever the text is."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _coco(path: Path, named: bool) -> LabelBook:
    text = path.read_text("utf-8")
    if not text.strip():
        raise CalibrationError(f"{path} is empty: expected COCO annotations")
    content = json.loads(text)
    if not isinstance(content, Mapping) or not {"images", "annotations"} <= content.keys():
        raise CalibrationError(f"{path} is no COCO file: expected a dictionary of images and annotations")
    if not named:
        raise CalibrationError(f"{path} names pictures, so it goes with a folder of pictures as data")
    images, annotations, categories = (_entries(path, content, part) for part in _FIELDS)
    used = {one["category_id"] for one in annotations}
    ids = sorted({one["id"] for one in categories} or used)
    _check_known(path, annotations, "image_id", {one["id"] for one in images})
    _check_known(path, annotations, "category_id", set(ids))
    found: dict[Any, list[Mapping[str, Any]]] = {one["id"]: [] for one in images}
    for one in annotations:
        found[one["image_id"]].append(one)
    return LabelBook(str(path), by_name={one["file_name"]: _boxes(found[one["id"]], ids) for one in images})


_FIELDS: Mapping[str, tuple[str, ...]] = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id",),
}
"""What the entries of each list of a COCO file must have."""

_SIDES = 4
"""Numbers of a box: x, y, width, height."""


def _entries(path: Path, content: Mapping[str, Any], part: str) -> list[Mapping[str, Any]]:
    """Return a list of a COCO file, whose entries are checked."""
    entries = content.get(part, [])
    if not isinstance(entries, list):
        raise CalibrationError(f"{path} is no COCO file: its {part!r} is no list")
    for place, one in enumerate(entries):
        lacking = [name for name in _FIELDS[part] if not isinstance(one, Mapping) or name not in one]
        if lacking:
            raise CalibrationError(f"{path}: {part}[{place}] has no {lacking[0]!r}")
        box = one.get("bbox") if part == "annotations" else None
        if box is not None and (not isinstance(box, list) or len(box) != _SIDES):
            raise CalibrationError(
                f"{path}: {part}[{place}] has the bbox {box}: expected [x, y, width, height]"
            )
    return entries


def _check_known(path: Path, annotations: list[Mapping[str, Any]], name: str, known: set[Any]) -> None:
    """Check that annotations name images and categories that are in the file's lists."""
    strange = [one[name] for one in annotations if one[name] not in known]
    if strange:
        part = "images" if name == "image_id" else "categories"
        raise CalibrationError(
            f"{path}: {len(strange)} of {len(annotations)} annotations have {name}s that are not in the list "
            f"of {part}: {shorten(list(dict.fromkeys(map(str, strange))))}"
        )


def _boxes(annotations: list[Mapping[str, Any]], ids: list[int]) -> dict[str, Any]:
    classes = np.array([one["category_id"] for one in annotations], np.int64)
    boxes = np.array([one["bbox"] for one in annotations], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return {
        "boxes": boxes,
        "classes": classes,
        "indices": np.searchsorted(np.array(ids, np.int64), classes),
        "categories": np.array(ids, np.int64),
        "crowd": np.array([bool(one.get("iscrowd", 0)) for one in annotations], bool),
    }


_READERS: Mapping[str, Callable[[Path, bool], LabelBook]] = {
    ".npy": _arrays,
    ".npz": _arrays,
    ".csv": _table,
    ".json": _coco,
}
