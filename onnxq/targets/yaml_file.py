"""A target in a YAML file: the fields of `Target`, all of them or as changes to a ``base``.

Its name is the file's, as it was given: by that name it is found again.
The file is read by the annotations of the dataclasses: a field that is added there can be written here. A
mapping that has a base changes it key by key; ``null`` takes a key away, or clears a field that may be empty.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import onnx.defs
import onnx_ir as ir

from onnxq.core.errors import TargetError
from onnxq.core.yaml_files import read_mapping
from onnxq.targets.target import Target

SUFFIXES = (".yaml", ".yml")

TYPES = {
    dtype.name.lower(): dtype
    for dtype in (
        *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8),
        *(ir.DataType.INT16, ir.DataType.UINT16),
    )
}
"""The number types that a file may name."""


class _WrongError(Exception):
    """Something in the file; the message begins with the field."""


def read_target(path: Path, bases: Mapping[str, Target]) -> Target:
    """The target that a file describes.

    Args:
        path: a YAML file.
        bases: what it may call its ``base``.

    Raises:
        TargetError: the file cannot be read, or holds an unknown field or a wrong value; the message names
            the file and the field, and lists what is valid.
    """
    content = read_mapping(path, "target", "base: tensorrt", TargetError)
    try:
        return _target(str(path), content, bases)
    except _WrongError as error:
        raise TargetError(f"{path}: {error}") from error


def _target(name: str, content: Mapping[str, Any], bases: Mapping[str, Target]) -> Target:
    named = content.get("base")
    if named is not None and named not in bases:
        raise _WrongError(f"base: unknown target {named!r}; valid: {', '.join(bases)}")
    known = ("base", *(field.name for field in fields(Target) if field.name != "name"))
    for field in content:
        if field not in known:
            raise _WrongError(f"{field}: unknown field; valid: {', '.join(known)}")
    given = {"name": name} | {field: value for field, value in content.items() if field != "base"}
    target: Target = _record(Target, given, None if named is None else bases[named], "")
    _check_formats(target)
    _check_operators(target)
    return _with_own_types(target, content)


def _check_formats(target: Target) -> None:
    """Two bits at least are left; axes and blocks follow from operators and options."""
    ends = (
        {}
        if target.first_last_formats is None
        else {"ends.activation": target.first_last_formats.activation, "ends.weight": target.first_last_formats.weight}
    )
    for where, spec in {"activation": target.activation, "weight": target.weight, **ends}.items():
        most = spec.dtype.bitwidth - 2
        if not 0 <= spec.reduce_bits <= most:
            raise _WrongError(f"{where}.reduce_bits: expected 0 to {most}, got {spec.reduce_bits}")
        if spec.axis is not None or spec.block_size is not None:
            raise _WrongError(f"{where}: axis and block_size follow from the operator and --block-size")


def _check_operators(target: Target) -> None:
    """A name that ONNX does not know would match nothing, without a word."""
    named = {"rules": target.rules, "transparent": target.transparent, "guarded": target.keep_float_weights}
    for where, operators in named.items():
        for operator in operators:
            if not onnx.defs.has(operator):
                raise _WrongError(f"{where}.{operator}: ONNX has no such operator")


def _with_own_types(target: Target, content: Mapping[str, Any]) -> Target:
    """The formats of activations and weights are among those that may be asked for."""
    if "activation_types" not in content:
        target = replace(target, activation_types=target.activation_types | {target.activation.dtype})
    if "weight" in content and "weight_types" not in content:
        target = replace(target, weight_types={**target.weight_types, target.weight.dtype: target.weight})
    return target


def _value(kind: Any, value: Any, base: Any, where: str) -> Any:
    """``value`` as the annotation ``kind`` wants it; ``base`` is what it changes."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _optional([arg for arg in args if arg is not types.NoneType], value, base, where)
    if is_dataclass(kind):
        return _record(kind, value, base, where)
    if origin is Mapping:
        return _mapping(args, value, base, where)
    if origin in (frozenset, tuple):
        return _several(origin, args, value, where)
    return _SIMPLE.get(kind, _named)(kind, value, where)


def _optional(kinds: list[Any], value: Any, base: Any, where: str) -> Any:
    """One of several kinds: nothing, or the first that takes the value."""
    if value is None:
        return None
    for kind in kinds[:-1]:
        try:
            return _value(kind, value, base, where)
        except _WrongError:
            continue
    return _value(kinds[-1], value, base, where)


def _record(kind: Any, value: Any, base: Any, where: str) -> Any:
    """A dataclass: ``base`` with the fields of ``value``, or a new one."""
    if not isinstance(value, dict):
        raise _WrongError(f"{where}: expected fields, got {value!r}")
    hints, declared = _hints(kind), {field.name: field for field in fields(kind)}
    given = {}
    for name, content in value.items():
        if name not in declared:
            raise _WrongError(f"{_at(where, str(name))}: unknown field; valid: {', '.join(declared)}")
        old = getattr(base, name) if base is not None else None
        given[name] = _value(hints[name], content, old, _at(where, name))
    if base is not None:
        return replace(base, **given)
    missing = [name for name, field in declared.items() if _is_required(field) and name not in given]
    if kind is Target and missing:
        given |= {name: default() for name, default in _TARGET_DEFAULTS.items() if name in missing}
        missing = [name for name in missing if name not in given]
    if missing:
        raise _WrongError(
            f"{_at(where, missing[0])}: a value is needed here{', or a base' if not where else ''}"
        )
    return kind(**given)


_TARGET_DEFAULTS: Mapping[str, Callable[[], Any]] = {"activation_types": frozenset, "weight_types": dict}
"""What follows from other fields (`_with_own_types`)."""


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _mapping(args: tuple[Any, ...], value: Any, base: Any, where: str) -> Mapping[Any, Any]:
    """``base`` with these keys changed, added or (null) taken away."""
    if not isinstance(value, dict):
        raise _WrongError(f"{where}: expected a mapping, got {value!r}")
    result = dict(base or {})
    for name, content in value.items():
        key = _value(args[0], name, None, where)
        if content is None:
            result.pop(key, None)
        else:
            result[key] = _value(args[1], content, result.get(key), _at(where, str(name)))
    return result


def _several(kind: Any, args: tuple[Any, ...], value: Any, where: str) -> Any:
    """A list, of the length that the annotation says, if it does."""
    if not isinstance(value, list):
        raise _WrongError(f"{where}: expected a list, got {value!r}")
    if kind is tuple and args[-1] is not ... and len(value) != len(args):
        raise _WrongError(f"{where}: expected {len(args)} values, got {value!r}")
    return kind(_value(args[0], each, None, where) for each in value)


def _number(kind: Any, value: Any, where: str) -> Any:
    allowed = (int, float) if kind is float else kind
    if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
        raise _WrongError(f"{where}: expected {_WORDS[kind]}, got {value!r}")
    return kind(value)


def _named(kind: Any, value: Any, where: str) -> Any:
    """A member of an enumeration, by its name in small letters with hyphens."""
    names = TYPES if kind is ir.DataType else {spelled(member): member for member in kind}
    if not isinstance(value, str) or value not in names:
        raise _WrongError(f"{where}: expected one of {', '.join(names)}; got {value!r}")
    return names[value]


def spelled(member: Enum) -> str:
    """How a file writes it."""
    return member.name.lower().replace("_", "-")


def _at(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_SIMPLE: Mapping[Any, Callable[[Any, Any, str], Any]] = dict.fromkeys(_WORDS, _number)
