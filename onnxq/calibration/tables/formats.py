"""The table formats by name: what each can hold, and how it is written, recognised and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType

from onnxq.calibration.tables import mqbench, ncnn, onnxq_json, onnxruntime, ppq, qualcomm, tensorrt
from onnxq.calibration.tables.parsing import Document
from onnxq.calibration.tables.table import INT8, UINT8, Table
from onnxq.core.plan import QuantSpec


class Part(Enum):
    """Content of a table that a format may not be able to hold; the value describes the loss for users."""

    WEIGHTS = "no weights, which are left out"
    ENDS = "one number per range, so ranges become symmetric"
    WIDTHS = "only 8 bits, so other widths are converted"
    ANY_SCALE = "only scales that are powers of two, so others are rounded up"


EVERYTHING = frozenset(Part)


@dataclass(frozen=True)
class Reader:
    """The functions that read files of a format.

    Attributes:
        recognises: whether a file has the format.
        decode: reads the table; it raises KeyError, TypeError, ValueError or the like if the file is damaged.
    """

    recognises: Callable[[Document], bool]
    decode: Callable[[Document], Table]


@dataclass(frozen=True)
class Format:
    """A format of calibration tables.

    Attributes:
        name: the name for ``--format``.
        encode: table, path -> the content of each file of the table.
        reader: reads the files; None if they do not hold enough to be read.
        suffixes: the endings of file names that select the format for ``--table`` without a format.
        holds: the content that it can hold besides one scale per tensor.
        spec: the number format of activations, for tables that hold only ranges.
        refuses: characters that names in it may not contain.
        files: path -> all files that are written for it.
        ours: it may name tensors that only onnxq's cleaned model has.
        layers: it names layers instead of tensors.
    """

    name: str
    encode: Callable[[Table, Path], Mapping[Path, bytes]]
    reader: Reader | None = None
    suffixes: tuple[str, ...] = ()
    holds: frozenset[Part] = frozenset({Part.ANY_SCALE})
    spec: QuantSpec = INT8
    refuses: str = ""
    files: Callable[[Path], tuple[Path, ...]] = lambda path: (path,)
    ours: bool = False
    layers: bool = False


def _one_file(encode: Callable[[Table], bytes]) -> Callable[[Table, Path], Mapping[Path, bytes]]:
    return lambda table, path: {path: encode(table)}


_ALL = (
    Format(
        "tensorrt",
        _one_file(tensorrt.encode),
        Reader(tensorrt.recognises, tensorrt.decode),
        suffixes=(".cache", ".calib"),
        refuses=":\r\n\0",
    ),
    Format(
        "ort",
        onnxruntime.encode,
        Reader(onnxruntime.recognises, onnxruntime.decode),
        suffixes=(".flatbuffers",),
        holds=frozenset({Part.ANY_SCALE, Part.WIDTHS}),
        refuses="\r\n\0",
        files=onnxruntime.files,
    ),
    Format(
        "ncnn",
        _one_file(ncnn.encode),
        suffixes=(".table",),
        holds=frozenset({Part.ANY_SCALE, Part.WEIGHTS}),
        refuses=" \t\r\n\v\f\0",
        layers=True,
    ),
    Format(
        "snpe",
        _one_file(qualcomm.encode_snpe),
        Reader(qualcomm.recognises_snpe, qualcomm.decode_snpe),
        suffixes=(".encodings",),
        holds=EVERYTHING,
        spec=UINT8,
    ),
    Format(
        "qnn",
        _one_file(qualcomm.encode_qnn),
        Reader(qualcomm.recognises_qnn, qualcomm.decode_qnn),
        holds=EVERYTHING,
        spec=UINT8,
    ),
    Format(
        "mqbench",
        _one_file(mqbench.encode_tensorrt),
        Reader(mqbench.recognises_tensorrt, mqbench.decode_tensorrt),
        suffixes=("_clip_ranges.json",),
    ),
    Format(
        "mqbench-snpe",
        _one_file(mqbench.encode_snpe),
        Reader(mqbench.recognises_snpe, qualcomm.decode_snpe),
        holds=EVERYTHING - {Part.WEIGHTS},
        spec=UINT8,
    ),
    Format(
        "mqbench-vitis",
        _one_file(mqbench.encode_vitis),
        Reader(mqbench.recognises_vitis, mqbench.decode_vitis),
        holds=frozenset(),
    ),
    Format(
        "mqbench-ppl",
        _one_file(mqbench.encode_ppl),
        Reader(mqbench.recognises_ppl, mqbench.decode_ppl),
        holds=EVERYTHING,
        spec=UINT8,
    ),
    Format(
        "ppq",
        _one_file(ppq.encode),
        Reader(ppq.recognises, ppq.decode),
        holds=EVERYTHING,
        spec=UINT8,
    ),
    Format(
        "json",
        _one_file(onnxq_json.encode),
        Reader(onnxq_json.recognises, onnxq_json.decode),
        suffixes=(".json",),
        holds=EVERYTHING,
        spec=UINT8,
        ours=True,
    ),
)

FORMATS: Mapping[str, Format] = MappingProxyType({each.name: each for each in _ALL})
