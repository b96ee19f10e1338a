"""Values, plans and qualities as plain data, which JSON can hold."""

from __future__ import annotations

import dataclasses
import enum
import math
import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np
import onnx_ir as ir
from pydantic import BaseModel

from onnxq.core.plan import QuantPlan


def plain(value: Any) -> Any:
    """Turn a value into dicts, lists, texts and numbers; what is not finite becomes None.

    Raises:
        TypeError: there is no plain form of it.
    """
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist())
    for kinds, turn in _FORMS:
        if isinstance(value, kinds):
            return turn(value)
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    raise TypeError(f"{type(value).__name__} has no plain form")


_FORMS: tuple[tuple[Any, Any], ...] = (
    (ir.DataType, lambda value: value.name.lower()),
    (enum.Enum, lambda value: plain(value.value)),
    (os.PathLike, os.fspath),
    (BaseModel, lambda value: value.model_dump(mode="json")),
    (Mapping, lambda value: {_key(key): plain(each) for key, each in value.items()}),
    (Set, lambda value: sorted(map(plain, value))),
    (Iterable, lambda value: [plain(each) for each in value]),
)


def _key(key: Any) -> str:
    return key if isinstance(key, str) else " ".join(map(str, key)) if isinstance(key, tuple) else str(key)


def plan_of(plan: QuantPlan) -> dict[str, Any]:
    """The decisions of a plan: nodes with their operators and reasons, and the quantized edges."""
    return {
        "target": plan.target,
        "integer_nodes": _nodes(plan.integer_nodes),
        "float_nodes": [
            {"name": name, "op_type": node.op_type, "reason": node.reason}
            for name, node in plan.float_nodes.items()
        ],
        "carried_nodes": _nodes(plan.passthrough_nodes),
        "points": [
            {
                "tensor": point.tensor,
                "consumer": point.consumer,
                "input_index": point.input_index,
                "type": point.spec.dtype.name.lower(),
                "symmetric": point.spec.symmetric,
                "axis": point.spec.axis,
                "block_size": point.spec.block_size,
                "group": point.group,
            }
            for point in plan.points
        ],
    }


def _nodes(types: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "op_type": op_type} for name, op_type in types.items()]


def quality_of(quality: Any) -> dict[str, Any] | None:
    """The accuracy of all outputs, with the figures of the worst one; None if it was not measured."""
    if quality is None:
        return None
    worst = {"sqnr": plain(quality.sqnr), "agreement": plain(quality.agreement)}
    return {**worst, **{name: each for name, each in plain(quality).items() if name != "each"}}
