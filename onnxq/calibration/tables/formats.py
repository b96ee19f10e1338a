"""The table formats by name: what each holds, how it is written, known again and read."""

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
    """What a table may say and a format may have no place for; the value says what becomes of it."""

    WEIGHTS = "no weights, which are left out"
    ENDS = "one number a range, which becomes symmetric"
    WIDTHS = "8 bits only, to which other widths are turned"
    ANY_SCALE = "powers of two only, to which scales are rounded up"


EVERYTHING = frozenset(Part)


@dataclass(frozen=True)
class Reader:
    """How files of a format are read.

    Attributes:
        recognises: whether a file is of the format.
        decode: what it says; KeyError, TypeError, ValueError or the like if it is damaged.
    """

    recognises: Callable[[Document], bool]
    decode: Callable[[Document], Table]


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        name: what ``--format`` takes.
        encode: table, path -> the content of every file that makes it up.
        reader: None if the files do not carry enough.
        suffixes: how the names of its files end, for ``--table`` without a format.
        holds: what it has a place for, beside a scale a tensor.
        spec: the number format of activations that it deploys, where nothing is decided yet.
        refuses: characters that no name in it may have.
        files: path -> all files that are written there.
        ours: it may name what only our cleaned model has.
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
