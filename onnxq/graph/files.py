"""Read and write ONNX files; a file is written completely or not at all.

Weights in external data files stay on disk, memory-mapped, until they are read.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from calibrators import atomic
from calibrators.onnx_files import (
    UnusableModelError,
    data_file,
    external_locations,
    from_proto,
    read_proto,
    root_graphs,
    save_model,
    stored_tensors,
)
from calibrators.session import INLINE_BYTES
from onnxq.core.errors import ModelError
from onnxq.graph.nodes import all_nodes
from onnxq.graph.validity import check_valid

logger = logging.getLogger(__name__)

_Validated = TypeVar("_Validated")

INLINE_LIMIT = 1_800_000_000
"""Size of weights, in bytes, above which they go to a file beside the model: a protobuf holds 2 GiB."""

SHARD_BYTES = 4_000_000_000
"""Size of such a file, in bytes, above which there is another one: file systems and browsers have limits."""

MOST_SHARDS = 100
"""The most such files."""


def load(path: str | os.PathLike[str]) -> ir.Model:
    """Read an ONNX model and sort its nodes; external weights are checked and mapped, but not read.

    Raises:
        ModelError: the file is missing, truncated, empty or no ONNX model, or its external data is missing
            or too short.
    """
    return _convert(_read(path), Path(path).absolute())


def _read(path: str | os.PathLike[str]) -> onnx.ModelProto:
    file = Path(path).absolute()
    if not file.exists():
        raise ModelError(f"{path}: no such file. Give the path of an ONNX model.")
    if file.is_dir():
        raise ModelError(f"{path}: is a directory. Give the path of the .onnx file in it.")
    if atomic.is_special(file):
        raise ModelError(f"{path} {atomic.NOT_PLAIN}. Give the path of an .onnx file.")
    with _format_errors(str(file)):
        return read_proto(file)


def _convert(proto: onnx.ModelProto, file: Path) -> ir.Model:
    """Convert the contents of a file, which may be changed, to a model, and check it."""
    with _format_errors(str(file)):
        model = from_proto(proto, file.parent)
    _check_is_model(model, file)
    _check_external_data(model, file)
    _type_weights(model)
    _sort(model, file)
    return model


def from_memory(proto: onnx.ModelProto) -> ir.Model:
    """Convert a protobuf, which is not changed, to a model.

    Raises:
        ModelError: it is no ONNX model, or something in it cannot be used.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with _format_errors("the given ModelProto"):
        return from_proto(copy)


@contextmanager
def _format_errors(model: str) -> Iterator[None]:
    """Turn errors of reading a model into a ModelError that says what to do."""
    try:
        yield
    except OSError as e:
        raise ModelError(f"{model}: cannot be read ({e.strerror}).") from e
    except UnusableModelError as e:
        raise ModelError(f"{model}: {e}. Export or download it again.") from e
    except (DecodeError, TypeError, ValueError, ir.serde.SerdeError) as e:
        raise ModelError(
            f"{model}: not an ONNX model, or a truncated one. Export or download it again."
        ) from e


def _check_is_model(model: ir.Model, file: Path) -> None:
    if fault := next(_faults(model), None):
        raise ModelError(f"{file}: {fault}")


def _faults(model: ir.Model) -> Iterator[str]:
    """Say what is missing or inconsistent: a protobuf parser takes any bytes for unknown fields."""
    if not model.ir_version or not model.graph.opset_imports:
        yield (
            "not an ONNX model, or a truncated one (no IR version or no opset). Export or download it again."
        )
    if not len(model.graph):
        yield "the graph has no nodes, so there is nothing to run."
    if not model.graph.outputs:
        yield "the graph has no outputs, so there is nothing to compute."
    names = Counter(value.name for value in model.graph.outputs)
    yield from (
        f"graph output {name!r} is listed twice. Remove one, or give it another name."
        for name, count in names.items()
        if count > 1
    )
    for node in all_nodes(model):
        yield from _faults_of(node)
    for value in (output for graph in model.graphs() for output in graph.outputs):
        if value.producer() is None and not value.is_graph_input() and not value.is_initializer():
            yield f"nothing in the file provides the graph output {value.name!r}. Export the model again."


def _faults_of(node: ir.Node) -> Iterator[str]:
    for attribute in node.attributes.values():
        if attribute.is_ref():
            yield (
                f"attribute {attribute.name!r} of node {node.name!r} ({node.op_type}) refers to "
                f"{attribute.ref_attr_name!r}, an attribute of a function, but is in none. Export the model "
                "again."
            )
    for value in node.inputs:
        if value is not None and value.graph is None:
            yield (
                f"node {node.name!r} ({node.op_type}) reads tensor {value.name!r}, which nothing in the file "
                "provides. Export the model again."
            )


def _type_weights(model: ir.Model) -> None:
    """Give each weight the type and shape of its tensor; what the file declares may be less precise."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := value.const_value) is not None:
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())


def _sort(model: ir.Model, file: Path) -> None:
    """Sort nodes after the nodes they read: ONNX demands it, some exporters ignore it, cloning needs it."""
    try:
        for graph in root_graphs(model):
            graph.sort()
    except ValueError as e:
        raise ModelError(f"{file}: the graph has a cycle, so it cannot be run. Export it again.") from e


def _check_external_data(model: ir.Model, file: Path) -> None:
    seen: set[str] = set()
    for tensor in stored_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external_tensor(tensor, file, first=tensor.path not in seen)
            seen.add(tensor.path)


def _check_external_tensor(tensor: ir.ExternalTensor, file: Path, first: bool) -> None:
    data = Path(tensor.path)
    if atomic.is_special(data):
        raise ModelError(f"{file}: the external data file {data} {atomic.NOT_PLAIN}. Put a plain file there.")
    if not data.is_file():
        raise ModelError(
            f"{file}: the external data file {data} with tensor {tensor.name!r} is missing. "
            "Put it beside the model."
        )
    needed = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
    if data.stat().st_size < needed:
        raise ModelError(
            f"{file}: the external data file {data} ends before tensor {tensor.name!r} "
            f"({data.stat().st_size} bytes, {needed} needed). Download it again."
        )
    if first:
        _map(tensor, file)


def _map(tensor: ir.ExternalTensor, file: Path) -> None:
    """Map one tensor of each file, to find data that may not be read, or lies outside the model's folder."""
    try:
        tensor.numpy()
    except (OSError, ValueError) as e:
        raise ModelError(
            f"{file}: the external data of tensor {tensor.name!r} cannot be used: {e} "
            "Put a plain copy of the data file beside the model."
        ) from e


def write(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Check and write a model atomically: on any failure, Ctrl-C included, nothing changes on disk.

    The file is built in a temporary folder beside ``path``, checked by `onnx.checker` and renamed.
    Weights of more than `INLINE_LIMIT` bytes in total go to ``<path>.data``, and above `SHARD_BYTES` to
    ``<path>.data_1`` … too.

    Args:
        model: the model; it is not changed.
        path: the file to create or replace.

    Raises:
        ModelError: the path cannot be written, the disk is full, or the model is not valid ONNX.
    """
    _write(partial(save, model), path, lambda draft: None, atomic.drafts)


def write_validated(
    model: ir.Model, path: str | os.PathLike[str], validate: Callable[[Path], _Validated]
) -> _Validated:
    """Write a model as `write` does, and validate the file before it is renamed.

    In a block of `written_together` it is renamed at the end of that block.

    Args:
        model: the model; it is not changed.
        path: the file to create or replace.
        validate: called with the temporary file; an error that it raises stops the writing.

    Returns:
        what ``validate`` returns.

    Raises:
        ModelError: as `write`.
    """
    return _write(partial(save, model), path, validate, atomic.staged)


def write_made(
    path: str | os.PathLike[str], make: Callable[[Path], None], validate: Callable[[Path], _Validated]
) -> _Validated:
    """Write a model as `write_validated` does, by a function that makes the file.

    Args:
        path: the file to create or replace.
        make: called with the temporary file, which it writes. Weights may go to its `data_files`.
        validate: called with the temporary file; an error that it raises stops the writing.

    Raises:
        ModelError: as `write`.
    """
    return _write(make, path, validate, atomic.staged)


def _write(
    make: Callable[[Path], None],
    path: str | os.PathLike[str],
    validate: Callable[[Path], _Validated],
    drafts: Callable[[Iterable[Path]], AbstractContextManager[Mapping[Path, Path]]],
) -> _Validated:
    check_place(path)
    target = atomic.real(Path(path))
    files = (*data_files(target), target)  # data is moved first: the model is useless without it
    with _place_errors(target, atomic.NotWrittenError), drafts(files) as beside:
        with _place_errors(target):
            make(beside[target])
            check_valid(beside[target], f"{target}: not written, because the model is not valid ONNX")
        return validate(beside[target])


def data_files(path: Path) -> tuple[Path, ...]:
    """The files that may be written beside a model, with its weights."""
    return tuple(data_file(path, number) for number in range(MOST_SHARDS))


@contextmanager
def written_together(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let all models, tables and reports that are written in the block appear at its end, or none.

    Args:
        before: called before the first one appears, as for `calibrators.atomic.together`.

    Raises:
        ModelError: a file cannot be written.
    """
    try:
        with atomic.together(before):
            yield
    except atomic.NotWrittenError as error:
        raise _write_error(Path(error.filename), error) from error


@contextmanager
def _place_errors(target: Path, kind: type[OSError] = OSError) -> Iterator[None]:
    """Turn OSErrors into a ModelError that says what to do."""
    try:
        yield
    except kind as e:
        raise _write_error(target, e) from e


def check_place(path: str | os.PathLike[str]) -> None:
    """Check in advance whether a file can be written to ``path``, or to where it leads if it is a link.

    Raises:
        ModelError: the directory is missing or may not be written, ``path`` exists and is not a file, or it
            cannot be the path of a file.
    """
    with _place_errors(Path(path)):
        target = atomic.real(Path(path).absolute())
    if not target.parent.is_dir():
        raise ModelError(f"{path}: there is no directory {target.parent}. Make it first.")
    if target.is_dir():
        raise ModelError(f"{path}: is a directory. Give the name of the file to write.")
    if target.exists() and not target.is_file():
        raise ModelError(
            f"{path}: is a device or a pipe, and would be replaced by a file. Give another name."
        )
    if not os.access(target.parent, os.W_OK):
        raise _write_error(target, OSError(errno.EACCES, os.strerror(errno.EACCES)))


def size_on_disk(path: str | os.PathLike[str], model: ir.Model | None = None) -> int:
    """Sum the sizes, in bytes, of a model file and of the external data files that it names.

    Args:
        path: the file.
        model: what it contains, if it has been read.

    Raises:
        ModelError: the model cannot be read.
    """
    files = files_of(path) if model is None else (Path(path), *external_files(model))
    return sum(file.stat().st_size for file in files)


def constant_bytes(path: str | os.PathLike[str]) -> int:
    """Sum the bytes of all constants of a model, without names and nodes.

    Raises:
        ModelError: the model cannot be read.
    """
    return sum(tensor.nbytes for tensor in stored_tensors(load(path)))


def files_of(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """List a model file and the external data files that it names.

    Raises:
        ModelError: the model cannot be read.
    """
    folder = Path(path).absolute().parent
    return (Path(path), *(folder / name for name in sorted(external_locations(_read(path)))))


def external_files(model: ir.Model) -> tuple[Path, ...]:
    """List the files that hold weights of ``model``."""
    external = {str(tensor.path) for tensor in stored_tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    return tuple(map(Path, sorted(external)))


def _write_error(target: Path, error: OSError) -> ModelError:
    cures = {
        errno.ENOSPC: "the disk is full. Free some space or write elsewhere.",
        errno.EDQUOT: "the disk quota is used up. Free some space or write elsewhere.",
        errno.EROFS: "the file system is read-only. Write elsewhere.",
        errno.EACCES: "permission denied. Write elsewhere or change the directory's permissions.",
        errno.EPERM: "permission denied. Write elsewhere or change the directory's permissions.",
        errno.ENAMETOOLONG: "the file name is too long. Choose a shorter one.",
        errno.ELOOP: "it is a link that leads to itself. Remove the link, or give another name.",
    }
    return ModelError(
        f"{target}: cannot be written: {cures.get(error.errno or 0, error.strerror or str(error))}"
    )


def save(model: ir.Model, path: Path) -> None:
    """Write a model without any check; weights of more than `INLINE_LIMIT` bytes go to `data_files`."""
    size = sum(tensor.nbytes for tensor in stored_tensors(model))
    # Two files in a row hold more than one limit together, so a third of the files leaves room for the gaps.
    shard = max(SHARD_BYTES, -(-size // (MOST_SHARDS // 3)))
    save_model(model, path, external=size > INLINE_LIMIT, most_bytes=INLINE_BYTES, shard_bytes=shard)
