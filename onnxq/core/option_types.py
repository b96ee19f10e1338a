"""The types of options: the values that they may have, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

Method = Literal["minmax", "moving-average", "percentile", "entropy", "mse", "auto"]
Correction = Literal["center", "equalize", "ranges", "rounding", "adaround", "bias", "full-bias", "none"]
ActivationType = Literal["uint8", "int8", "uint16", "int16", "float8e4m3fn"]
WeightType = Literal["uint8", "int8", "uint4", "int4", "uint2", "float16", "float8e4m3fn"]
FloatType = Literal["keep", "float32", "float16", "bfloat16"]
IOTypes = Literal["keep", "float"]
Mode = Literal["static", "dynamic", "weight-only"]
BlockFormat = Literal["matmulnbits", "dequantize"]
BlockFormatChoice = Literal["auto", "matmulnbits", "dequantize"]
Autotune = Literal["auto", "off", "full"]
WeightMethod = Literal["mse", "absmax"]
Verify = Literal["auto", "full", "off"]
TableFormat = Literal[
    "tensorrt",
    "ort",
    "ncnn",
    "snpe",
    "qnn",
    "mqbench",
    "mqbench-snpe",
    "mqbench-vitis",
    "mqbench-ppl",
    "ppq",
    "json",
]


def _named(path: Any) -> Any:
    """Refuse an empty path: it comes from an unset variable and does not mean the current folder."""
    if path == "":
        raise PydanticCustomError("path_type", "an empty path")
    return path


def _switched(value: Any) -> Any:
    """Read a switch: YAML reads ``off`` as false, and earlier versions had no other values."""
    return {True: "full", False: "off"}.get(value, value) if isinstance(value, bool) else value


def _several(names: Any) -> Any:
    """Make a single name a tuple of one, so it is not read as a sequence of letters."""
    return (names,) if isinstance(names, str | Path) else names


def _metric(value: Any) -> Any:
    """Accept a name or a function."""
    if value is None or callable(value) or (isinstance(value, str) and value.strip()):
        return value
    raise PydanticCustomError("metric", "FILE.py:FUNCTION, a built-in name, or a function in Python")


def _labels(value: Any) -> Any:
    """Make an array a tuple of its rows: options are compared, and arrays compare element by element."""
    return tuple(value) if hasattr(value, "__array__") else _named(value)


def is_text(value: Any) -> bool:
    """Whether an option can be written to a file of options."""
    return value is None or isinstance(value, str | Path)


MetricChoice = Annotated[Any, BeforeValidator(_metric)]
LabelChoice = Annotated[Any, BeforeValidator(_labels)]


def _listed(names: Any) -> Any:
    """Split names at commas, in one text or in several."""
    texts = _several(names)
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        return texts  # pydantic says what is wrong
    return tuple(name.strip() for text in texts for name in text.split(","))


FilePath = Annotated[Path, BeforeValidator(_named)]
FilePaths = Annotated[tuple[FilePath, ...], BeforeValidator(_several)]
Names = Annotated[tuple[str, ...], BeforeValidator(_several)]
TableFormats = Annotated[tuple[TableFormat, ...], BeforeValidator(_several)]
Corrections = Annotated[tuple[Correction, ...], BeforeValidator(_listed)]
AutotuneSwitch = Annotated[Autotune, BeforeValidator(_switched)]
