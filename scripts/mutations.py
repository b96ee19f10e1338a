"""Change a model at random, field by field of its protobuf message: what a foreign or damaged file may hold.

A change of a field keeps the file readable, so that it gets past the parser and into planning, calibration
and checks. Some changes are made to the bytes of the file, as a bad disk or a broken download makes them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import Message  # type: ignore[import-untyped]

INTEGERS = (
    *(0, 1, -1, 2, 3, 7, 13, 127, 255, -128, 1000),
    *(2**31 - 1, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1),
)
"""Sizes among them are small or impossible: a model with large tensors really takes the time they need."""

FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3.5, float("inf"), float("-inf"), float("nan"))
TEXTS = ("", "x", "\x1b[2J", "a/../b", "ä" * 300, "com.microsoft", "ai.onnx", "op:*", "%s{0}", "\u202e", "\n")
OPERATORS = (
    *("Conv", "Gemm", "MatMul", "Relu", "Clip", "Add", "Concat", "Split", "Slice", "Gather", "Reshape"),
    *("Transpose", "MaxPool", "AveragePool", "BatchNormalization", "Softmax", "Cast", "Resize", "Pad"),
    *("Identity", "Shape", "If", "LSTM", "TopK", "Where", "ReduceMean", "NonZero", "Unknown"),
    *("QuantizeLinear", "DequantizeLinear"),
)

LONGEST = 4096
"""Bytes fields longer than this are changed in place, not replaced."""


def mutate(model: onnx.ModelProto, random: Random) -> bytes:
    """Make a file from ``model`` with one to three random changes.

    Args:
        model: the model; it is not changed.
        random: the source of all choices.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        random.choice(CHANGES)(changed, random)
    data = changed.SerializeToString()
    return damaged(data, random) if random.random() < 0.05 else data


def damaged(data: bytes, random: Random) -> bytes:
    """Cut bytes off, or change some."""
    if random.random() < 0.3:
        return data[: random.randrange(len(data) + 1)]
    changed = bytearray(data)
    for _ in range(random.randint(1, 4) if data else 0):
        changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _change_field(model: onnx.ModelProto, random: Random) -> None:
    """Change any field of any message in the model, set or not."""
    message = random.choice(list(_messages(model)))
    field = random.choice(message.DESCRIPTOR.fields)
    if field.is_repeated:
        _change_list(getattr(message, field.name), field, model, random)
    elif field.message_type is not None:
        _change_message(message, field, model, random)
    elif random.random() < 0.2:
        message.ClearField(field.name)
    else:
        _assign(message, field, _value(field, getattr(message, field.name), model, random))


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in value if field.is_repeated else (value,):
                yield from _messages(each)


def _change_list(values: Any, field: FieldDescriptor, model: onnx.ModelProto, random: Random) -> None:
    """Remove, repeat, change or add an element."""
    at = random.randrange(len(values)) if values else None
    choice = random.choice(("remove", "repeat", "change", "add"))
    if field.message_type is not None:
        _change_messages(values, at, choice, random)
    elif choice == "remove" and at is not None:
        del values[at]
    elif choice == "change" and at is not None:
        values[at] = _value(field, values[at], model, random)
    else:
        values.append(
            values[at] if choice == "repeat" and at is not None else _value(field, None, model, random)
        )


def _change_messages(values: Any, at: int | None, choice: str, random: Random) -> None:
    if at is None or choice == "add":
        values.add()
    elif choice == "remove":
        del values[at]
    elif choice == "repeat":
        values.add().CopyFrom(values[at])
    else:
        values[at].CopyFrom(values[random.randrange(len(values))])


def _change_message(message: Any, field: FieldDescriptor, model: onnx.ModelProto, random: Random) -> None:
    """Remove a single message, make it empty, or copy one of its type from elsewhere."""
    alike = [each for each in _messages(model) if each.DESCRIPTOR is field.message_type]
    if alike and random.random() < 0.5:
        donor = type(alike[0])()
        donor.CopyFrom(random.choice(alike))  # first of all: it may contain the message that changes
        getattr(message, field.name).CopyFrom(donor)
        return
    message.ClearField(field.name)
    if random.random() < 0.3:
        getattr(message, field.name).SetInParent()


def _assign(message: Message, field: FieldDescriptor, value: object) -> None:
    try:
        setattr(message, field.name, value)
    except ValueError:  # an enumeration that is closed
        message.ClearField(field.name)


def _value(field: FieldDescriptor, old: Any, model: onnx.ModelProto, random: Random) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return random.choice(field.enum_type.values).number
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return random.random() < 0.5
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return random.choice(FLOATS)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _bytes(old, random) if field.type == FieldDescriptor.TYPE_BYTES else _text(model, random)
    return _integer(field, old, random)


def _integer(field: FieldDescriptor, old: Any, random: Random) -> int:
    near = [int(old or 0) + step for step in (-1, 1)]
    value = random.choice((*near, *INTEGERS))
    bits = 31 if field.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32) else 63
    unsigned = field.cpp_type in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    return int(max(0 if unsigned else -(2**bits), min(value, 2**bits - 1)))


def _bytes(old: bytes | None, random: Random) -> bytes:
    if old and (len(old) > LONGEST or random.random() < 0.5):
        return damaged(old, random)
    return random.choice((b"", b"\xff\xfe", struct.pack("<f", random.choice(FLOATS)), b"x" * 17))


def _text(model: onnx.ModelProto, random: Random) -> str:
    """Choose a name of a tensor, an operator, or an odd text."""
    names: list[str] = [name for node in model.graph.node for name in (*node.input, *node.output)]
    return random.choice((*TEXTS, *(random.choice(names) for _ in range(len(TEXTS) if names else 0))))


def _change_operator(model: onnx.ModelProto, random: Random) -> None:
    if model.graph.node:
        random.choice(model.graph.node).op_type = random.choice(OPERATORS)


def _rewire(model: onnx.ModelProto, random: Random) -> None:
    """Let an input of a node read another tensor, or none."""
    node = random.choice(model.graph.node) if model.graph.node else None
    if node is not None and node.input:
        node.input[random.randrange(len(node.input))] = _text(model, random)


def _remove_node(model: onnx.ModelProto, random: Random) -> None:
    if model.graph.node:
        del model.graph.node[random.randrange(len(model.graph.node))]


def _change_values(model: onnx.ModelProto, random: Random) -> None:
    """Change numbers of an initializer: infinities, NaN, zeros, or all alike."""
    stored = [
        each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT and each.raw_data
    ]
    if stored:
        tensor = random.choice(stored)
        count = len(tensor.raw_data) // 4
        number = struct.pack("<f", random.choice(FLOATS))
        at = 4 * random.randrange(max(count, 1))
        alone = tensor.raw_data[:at] + number + tensor.raw_data[at + 4 :]
        tensor.raw_data = alone if random.random() < 0.5 else number * count


def _change_dimension(model: onnx.ModelProto, random: Random) -> None:
    """Change a declared dimension, or the number of dimensions, of an input, output or initializer."""
    shapes = [v.type.tensor_type.shape for v in (*model.graph.input, *model.graph.output)]
    if shapes and random.random() < 0.7:
        shape = random.choice(shapes)
        if shape.dim and random.random() < 0.8:
            random.choice(shape.dim).dim_value = random.choice(INTEGERS)
        else:
            shape.dim.add().dim_value = random.choice(INTEGERS)
    elif model.graph.initializer:
        dims = random.choice(model.graph.initializer).dims
        if dims:
            dims[random.randrange(len(dims))] = random.choice(INTEGERS)


CHANGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    *(_change_field,) * 4,
    _change_operator,
    _rewire,
    _remove_node,
    _change_values,
    _change_dimension,
)
