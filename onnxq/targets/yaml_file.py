"""A target in a YAML file: the fields of `Target`, all of them or as changes to a ``base``.

Its name is the path of the file, as given: by that name it is found again. A mapping that has a base changes
it key by key; ``null`` removes a key, or clears a field that may be empty. pydantic validates the result by
the annotations of the dataclasses, so a field that is added there can be written here.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import onnx.defs
import onnx_ir as ir
from pydantic import TypeAdapter, ValidationError

from onnxq.core.errors import TargetError, did_you_mean
from onnxq.core.yaml_files import read_mapping
from onnxq.targets.target import Target

SUFFIXES = (".yaml", ".yml")

OLD_NAMES: Mapping[str, str] = {
    "ends": "first_last_formats",
    "guarded": "keep_float_weights",
    "parts_norms": "unfuse_layernorm_add",
    "unequal": "no_shared_params",
    "unpacked": "weight_cast",
}
"""Earlier name of a field -> the field. Files that use it are still read."""

_FROM_SCRATCH: Mapping[str, Any] = {
    "activation_types": frozenset(),
    "rules": {},
    "weight_cast": {},
    "weight_types": {},
}
"""What a file without a base starts from; the types follow from other fields (`_with_own_types`)."""

_ADAPTER = TypeAdapter(Target)


class _WrongError(Exception):
    """Something in the file is wrong; the message begins with the field."""


def read_target(path: Path, bases: Mapping[str, Target]) -> Target:
    """The target that a file describes.

    Args:
        path: a YAML file.
        bases: targets that the file may name as its ``base``, by name.

    Raises:
        TargetError: the file cannot be read, or holds an unknown field or a wrong value; the message names
            the file and the field, and lists what is valid.
    """
    content = read_mapping(path, "target", "base: tensorrt", TargetError)
    try:
        target = _validated(str(path), content, bases)
        _check_formats(target)
        _check_operators(target)
    except _WrongError as error:
        raise TargetError(f"{path}: {error}") from error
    return _with_own_types(target, content)


def _validated(name: str, content: Mapping[str, Any], bases: Mapping[str, Target]) -> Target:
    """The target called ``name`` with the fields of ``content``."""
    base = content.get("base")
    if base is not None and base not in bases:
        raise _WrongError(f"base: unknown target {base!r}; valid: {', '.join(bases)}")
    given = {OLD_NAMES.get(field, field): value for field, value in content.items() if field != "base"}
    if "name" in given:
        raise _WrongError(_unknown(("name",)))
    merged = _merged(_FROM_SCRATCH if base is None else bases[base], given) | {"name": name}
    try:
        return _ADAPTER.validate_python(merged)
    except ValidationError as error:
        problems = error.errors()
        unknown = [each for each in problems if each["type"] == "unexpected_keyword_argument"]
        raise _WrongError(_described((unknown or problems)[0])) from error


def _merged(base: Any, given: Any) -> Any:
    """``base`` changed by ``given``, key by key where both have keys."""
    if not isinstance(given, dict):
        return given
    record = is_dataclass(base)
    result = {field.name: getattr(base, field.name) for field in fields(base)} if record else _spelled(base)
    for key, value in given.items():
        if value is None and not record and base is not None:
            result.pop(key, None)
        else:
            result[key] = _merged(result.get(key), value)
    return result


def _spelled(mapping: Any) -> dict[str, Any]:
    """A mapping with number types as keys in their spelling; empty if there is none."""
    keys = mapping if isinstance(mapping, Mapping) else {}
    return {
        key.name.lower() if isinstance(key, ir.DataType) else key: value for key, value in dict(keys).items()
    }


def _check_formats(target: Target) -> None:
    """At least two bits must be left; axes and blocks follow from operators and options."""
    formats = {"activation": target.activation, "weight": target.weight}
    if target.first_last_formats is not None:
        formats["first_last_formats.activation"] = target.first_last_formats.activation
        formats["first_last_formats.weight"] = target.first_last_formats.weight
    for where, spec in formats.items():
        most = spec.dtype.bitwidth - 2
        if not 0 <= spec.reduce_bits <= most:
            raise _WrongError(f"{where}.reduce_bits: expected 0 to {most}, got {spec.reduce_bits}")
        if spec.axis is not None or spec.block_size is not None:
            raise _WrongError(f"{where}: axis and block_size follow from the operator and --block-size")


def _check_operators(target: Target) -> None:
    """A name that ONNX does not know would silently match nothing."""
    for where in ("rules", "transparent", "keep_float_weights"):
        for operator in getattr(target, where):
            if not onnx.defs.has(operator):
                raise _WrongError(f"{where}.{operator}: ONNX has no such operator")


def _with_own_types(target: Target, content: Mapping[str, Any]) -> Target:
    """``target`` whose formats of activations and weights are among those that the options accept."""
    if "activation_types" not in content:
        target = replace(target, activation_types=target.activation_types | {target.activation.dtype})
    if "weight" in content and "weight_types" not in content:
        target = replace(target, weight_types={**target.weight_types, target.weight.dtype: target.weight})
    return target


# --- errors in words --------------------------------------------------------------------------------


def _described(problem: Any) -> str:
    """One error of pydantic, with the field, what was expected and what was given."""
    loc, kind, given = problem["loc"], problem["type"], problem["input"]
    where = ".".join(part for part in loc if isinstance(part, str) and part != "[key]")
    if kind == "unexpected_keyword_argument":
        return _unknown(loc)
    if kind == "value_error":
        text = str(problem["ctx"]["error"])
        return f"{where}{text}" if text.startswith(".") else f"{where}: {text}"
    if kind == "missing" and not isinstance(loc[-1], int):
        return f"{where}: a value is needed here{', or a base' if len(loc) == 1 else ''}"
    if kind in ("missing", "too_long"):
        count = len(get_args(_annotation(tuple(part for part in loc if isinstance(part, str)))))
        return f"{where}: expected {count} values, got {given!r}"
    expected = _EXPECTED.get(kind, problem["msg"]).format(**problem.get("ctx", {}))
    return f"{where}: expected {expected}, got {given!r}"


_EXPECTED: Mapping[str, str] = {
    "bool_type": "true or false",
    "greater_than_equal": "at least {ge}",
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a text",
    "dataclass_type": "fields",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "frozen_set_type": "a list",
    "tuple_type": "a list",
}
"""pydantic's name of an error -> what was expected."""


def _unknown(loc: tuple[Any, ...]) -> str:
    """A field that does not exist, and those that do."""
    kind = _annotation(loc[:-1])
    names = [field.name for field in fields(kind)]
    valid = ["base", *names[1:]] if kind is Target else names
    near = did_you_mean(str(loc[-1]), valid)
    return f"{'.'.join(map(str, loc))}: unknown field; valid: {', '.join(valid)}{near}"


def _annotation(loc: tuple[Any, ...]) -> Any:
    """The type that `Target` declares at this place, without ``None`` and without what pydantic adds."""
    kind: Any = Target
    for part in loc:
        kind = get_type_hints(kind)[part] if is_dataclass(kind) else get_args(kind)[-1]
        while get_origin(kind) in (Annotated, Union, types.UnionType):
            kind = get_args(kind)[0]
    return kind
