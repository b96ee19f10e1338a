"""Read and write ONNX models with onnx_ir, and handle what onnx_ir leaves out.

========================  ================================================================================
sparse tensors            made plain (`calibrators.sparse`)
types with maps           kept as `OpaqueType` at the inputs and outputs of the model
external data             also found when it belongs to attributes, in the bodies of functions too
text that is not UTF-8    refused where it names something, repaired where it only describes
tensors of wrong length   refused (`calibrators.tensor_check`)
negative sizes            made unknown: some exporters write -1, and ONNX's shape inference may abort on them
========================  ================================================================================

Weights in external files are copied when they are read into memory, because onnx_ir closes the mapped file
even while arrays of it are in use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import Message  # type: ignore[import-untyped]

from calibrators.sparse import make_sparse_plain
from calibrators.tensor_check import check_tensor

FREE_TEXT = frozenset({"doc_string", "producer_name", "producer_version", "value"})
"""Fields of text that nothing refers to; ``value`` belongs to metadata."""

MESSAGES = type(onnx.GraphProto().node)
"""The class of a list of protobuf messages."""

TRIMMED = "trimmed"
"""Key in `ir.Model.meta`: whether the file had last inputs without a name."""

TENSOR_ATTRIBUTES = (ir.AttributeType.TENSOR, ir.AttributeType.TENSORS)


class UnusableModelError(ValueError):
    """A file is an ONNX model, but something in it cannot be used. The message says what."""


class OpaqueType(ir.TypeProtocol):
    """A type that onnx_ir does not know, such as a sequence of maps; it is written as it was read.

    Attributes:
        proto: the serialized `onnx.TypeProto`.
        denotation: always None; it is part of ``proto``.
        elem_type: always undefined.
        dtype: always undefined, because such a value holds no tensor.
    """

    def __init__(self, proto: bytes) -> None:
        self.proto = proto
        self.denotation = None
        self.elem_type = self.dtype = ir.DataType.UNDEFINED

    def __eq__(self, other: object) -> bool:
        """Whether both are the same type."""
        return isinstance(other, OpaqueType) and other.proto == self.proto

    def __hash__(self) -> int:
        """Equal types have equal hashes."""
        return hash(self.proto)

    def __repr__(self) -> str:
        """Write the type in short, such as ``sequence(map(int64,tensor(float)))``."""
        return _type_text(onnx.TypeProto.FromString(self.proto))


def _type_text(kind: onnx.TypeProto) -> str:
    which = kind.WhichOneof("value")
    name = onnx.TensorProto.DataType.Name
    if which == "map_type":
        return f"map({name(kind.map_type.key_type).lower()},{_type_text(kind.map_type.value_type)})"
    if which == "tensor_type":
        return f"tensor({name(kind.tensor_type.elem_type).lower()})"
    inner = getattr(kind, which or "", None)
    return f"{(which or 'unknown').removesuffix('_type')}({_type_text(inner.elem_type) if inner else ''})"


def read_model(path: str | os.PathLike[str]) -> ir.Model:
    """Read a model. External data is mapped when it is used, and only from files in the model's folder.

    Raises:
        OSError, ValueError, TypeError, DecodeError, SerdeError: the file cannot be read, or is no model.
        UnusableModelError: something in the model cannot be used.
    """
    return from_proto(read_proto(path), Path(path).absolute().parent)


def read_proto(path: str | os.PathLike[str]) -> onnx.ModelProto:
    """Read a model as a protobuf, without external data.

    Raises:
        OSError, ValueError, TypeError, DecodeError: the file cannot be read, or is no model.
    """
    return onnx.load(path, load_external_data=False)


def from_proto(proto: onnx.ModelProto, folder: str | os.PathLike[str] = "") -> ir.Model:
    """Convert a protobuf to a model.

    Args:
        proto: the protobuf; it may be changed.
        folder: the folder with external data; if empty, paths may lead anywhere.

    Raises:
        UnusableModelError: something in the model cannot be used.
    """
    parts = list(messages(proto))
    try:
        for part in parts:
            _check_text(part)
            if isinstance(part, onnx.TensorShapeProto.Dimension) and part.dim_value < 0:
                part.ClearField("dim_value")
            if isinstance(part, onnx.TensorProto):
                check_tensor(part)
        make_sparse_plain(parts, folder)
    except (OSError, ValueError) as e:
        raise UnusableModelError(str(e)) from e
    kinds = _take_opaque(parts, proto.graph)
    trimmed = [part for part in parts if isinstance(part, onnx.NodeProto) and _trim(part)]
    model: ir.Model = ir.from_proto(proto)
    model.meta[TRIMMED] = bool(trimmed)
    for root in root_graphs(model):
        ir.external_data.set_base_dir(root, folder)
    for value in _interface(model):
        value.type = kinds.get(value.name or "", value.type)
    return model


def _trim(node: onnx.NodeProto) -> bool:
    """Leave out the last inputs if they have no name, which means the same; return whether there are such.

    ONNX Runtime's fusions read them as they are, which ends the process.
    """
    count = len(node.input)
    while node.input and not node.input[-1]:
        node.input.pop()
    return len(node.input) < count


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Convert a model to a protobuf; the model is not changed."""
    kinds = {v.name: v.type for v in _interface(model) if isinstance(v.type, OpaqueType)}
    if not kinds:
        return ir.to_proto(model)
    copy = model.clone()
    for value in _interface(copy):
        value.type = None if value.name in kinds else value.type
    proto = ir.to_proto(copy)
    for info in (*proto.graph.input, *proto.graph.output):
        if info.name in kinds:
            info.type.ParseFromString(kinds[info.name].proto)
    return proto


def has_opaque_types(model: ir.Model) -> bool:
    """Whether inputs or outputs have types that onnx_ir does not know: its own inference fails on them."""
    return any(isinstance(value.type, OpaqueType) for value in _interface(model))


def data_file(path: Path, number: int) -> Path:
    """Return the path of a file of weights beside a model: ``m.onnx.data``, ``m.onnx.data_1`` and so on."""
    return path.with_name(f"{path.name}.data" + (f"_{number}" if number else ""))


def save_model(
    model: ir.Model, path: Path, external: bool, most_bytes: int, shard_bytes: int = sys.maxsize
) -> None:
    """Write a copy of the model, so that its tensors keep referring to their own files.

    Args:
        model: the model; it is not changed.
        path: the file to write.
        external: write weights to files beside it (see `data_file`), but for small ones.
        most_bytes: the size, in bytes, of the largest weight that counts as small.
        shard_bytes: the largest size of such a file, if no weight alone is larger.
    """
    copy = model.clone()
    load_external(copy, most_bytes if external else sys.maxsize)
    if external:
        _write_external(copy, path, most_bytes, shard_bytes)
    onnx.save(to_proto(copy), path, format="protobuf")


def _write_external(model: ir.Model, path: Path, most_bytes: int, shard_bytes: int) -> None:
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    large = [v for v in values if v.const_value is not None and v.const_value.nbytes > most_bytes]
    if sum(v.const_value.nbytes for v in large if v.const_value is not None) <= shard_bytes:
        name = data_file(path, 0).name
        ir.external_data.unload_from_model(model, path.parent, name, size_threshold_bytes=most_bytes)
        return
    for number, shard in enumerate(_shards(large, shard_bytes)):
        tensors = [value.const_value for value in shard if value.const_value is not None]
        name = data_file(path, number).name
        written = ir.external_data.convert_tensors_to_external(tensors, path.parent, name)
        for value, tensor in zip(shard, written, strict=True):
            value.const_value = tensor


def _shards(values: Iterable[ir.Value], most: int) -> Iterator[list[ir.Value]]:
    """Split values with tensors, in their order, into parts of at most so many bytes, if none is larger."""
    part, size = list[ir.Value](), 0
    for value in values:
        assert value.const_value is not None
        if part and size + value.const_value.nbytes > most:
            yield part
            part, size = [], 0
        part.append(value)
        size += value.const_value.nbytes
    yield part


def type_and_shape(proto: onnx.TypeProto) -> tuple[ir.TypeProtocol | None, ir.Shape | None]:
    """Convert a type to onnx_ir's; both parts are None if it contains a map, or is unknown."""
    if _has_map(proto):
        return None, None
    return (
        ir.serde.deserialize_type_proto_for_type(proto),
        ir.serde.deserialize_type_proto_for_shape(proto),
    )


def messages(message: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages in it."""
    todo = [message]
    while todo:
        message = todo.pop()
        yield message
        if isinstance(message, onnx.TensorProto):  # ListFields would copy its data
            todo.extend((*message.external_data, *message.metadata_props))
            continue
        for _, content in message.ListFields():
            if isinstance(content, MESSAGES):
                todo.extend(content)
            elif isinstance(content, Message):
                todo.append(content)


def external_locations(proto: onnx.ModelProto) -> set[str]:
    """Find the locations, as they are written in the model, of all external data that it names."""
    tensors = (message for message in messages(proto) if isinstance(message, onnx.TensorProto))
    return {entry.value for t in tensors for entry in t.external_data if entry.key == "location"}


def root_graphs(model: ir.Model) -> tuple[ir.Graph, ...]:
    """Return the main graph and those of functions: with their bodies they hold all nodes of a model."""
    return (model.graph, *(function.graph for function in model.functions.values()))


def stored_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every stored tensor: initializers and tensor attributes, bodies and functions included."""
    for graph in model.graphs():
        yield from (v.const_value for v in graph.initializers.values() if v.const_value is not None)
    for _, attribute in _tensor_attributes(model):
        yield from _tensors_of(attribute)


def load_external(model: ir.Model, most_bytes: int = sys.maxsize) -> None:
    """Read external weights of at most ``most_bytes`` each into memory, and all external attributes.

    A file of weights can be written beside a model for initializers only.
    """
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= most_bytes:
                value.const_value = in_memory(tensor)
    for node, attribute in list(_tensor_attributes(model)):
        tensors = _tensors_of(attribute)
        if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
            loaded = [in_memory(t) if isinstance(t, ir.ExternalTensor) else t for t in tensors]
            one = attribute.type == ir.AttributeType.TENSOR
            content = loaded[0] if one else loaded
            node.attributes[attribute.name] = ir.Attr(attribute.name, attribute.type, content)


def in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Copy a tensor in an external file into memory."""
    return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Attr]]:
    """Yield every attribute with tensors, of all nodes in graphs, bodies and functions."""
    for node in (n for root in root_graphs(model) for n in ir.traversal.RecursiveGraphIterator(root)):
        for attribute in node.attributes.values():
            if attribute.type in TENSOR_ATTRIBUTES and not attribute.is_ref():
                yield node, attribute


def _tensors_of(attribute: ir.Attr) -> list[ir.TensorProtocol]:
    one = attribute.type == ir.AttributeType.TENSOR
    return [attribute.as_tensor()] if one else list(attribute.as_tensors())


def _interface(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    yield from model.graph.outputs


def _take_opaque(parts: Iterable[Any], graph: onnx.GraphProto) -> dict[str, OpaqueType]:
    """Remove all types with maps from the messages of a model; return those of its inputs and outputs."""
    kinds = {
        info.name: OpaqueType(info.type.SerializeToString())
        for info in (*graph.input, *graph.output)
        if _has_map(info.type)
    }
    for message in parts:
        if isinstance(message, onnx.ValueInfoProto) and _has_map(message.type):
            message.ClearField("type")
    return kinds


def _has_map(kind: onnx.TypeProto) -> bool:
    return any(isinstance(message, onnx.TypeProto.Map) for message in messages(kind))


def _check_text(message: Any) -> None:
    """Refuse text that is not UTF-8, which protobuf hands out as bytes; repair it where nothing refers to it.

    Raises:
        UnusableModelError: a name is not UTF-8.
    """
    for name in _text_fields(message.DESCRIPTOR):
        content = getattr(message, name)
        texts = (content,) if isinstance(content, str | bytes) else content
        wrong = next((text for text in texts if isinstance(text, bytes)), None)
        if wrong is None:
            continue
        if name not in FREE_TEXT:
            raise UnusableModelError(
                f"{wrong!r} ({name} of a {message.DESCRIPTOR.name}) is not UTF-8, as ONNX demands of "
                "all names: the file is damaged, or was written by a faulty tool"
            )
        setattr(message, name, wrong.decode("utf-8", "replace"))


@cache
def _text_fields(kind: Any) -> tuple[str, ...]:
    """Name the fields of text of a kind of message, by its descriptor."""
    return tuple(field.name for field in kind.fields if field.type == field.TYPE_STRING)
