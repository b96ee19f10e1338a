"""Open ONNX Runtime sessions: all sessions of the project are opened here."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias
from weakref import WeakSet

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from calibrators.errors import CalibrationError
from calibrators.exact_kernels import has_blocks, with_own_weights, with_zero_points
from calibrators.held_noise import hold
from calibrators.onnx_files import TRIMMED, read_model, root_graphs, save_model, stored_tensors, to_proto

logger = logging.getLogger(__name__)

Model: TypeAlias = ir.Model | str | os.PathLike[str]
"""A model, or the path of one."""

INLINE_BYTES = 256
"""Size of the largest tensor that stays in the model, where shape inference finds it."""


INLINE_LIMIT = 2**24
"""Largest total size of weights, in bytes, that is passed in memory.

Larger ones go by a file: a protobuf holds at most 2 GiB, and a session keeps what it is given in memory.
"""


NAME_TAKEN = "AddInitializedOrtValue"
"""Part of ONNX Runtime's error message when it creates two tensors of the same name."""

SILENT = 4
"""ONNX Runtime's severity "fatal". What it would log as an error it also raises, so nothing is lost."""


MESSAGE_LIMIT = 300


RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
)
"""Errors that a session raises when loading or running; ONNX Runtime's own classes share no base class."""


def open_session(
    model: Model,
    *,
    outputs: Sequence[str] = (),
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    optimize: bool = True,
    alone: bool = True,
    exact: bool = True,
    save_fused: str | os.PathLike[str] | None = None,
    layout: bool = False,
    profile: str | os.PathLike[str] | None = None,
) -> ort.InferenceSession:
    """Open a session that runs ``model``; the caller's model is not changed.

    Args:
        model: a model, or the path of one.
        outputs: tensors of the main graph to return after the model's own outputs. Tensors that are outputs
            already are not repeated.
        providers: execution providers, the preferred one first.
        threads: number of threads within a node; 0 leaves it to ONNX Runtime.
        optimize: let ONNX Runtime fuse and rewrite nodes.
        alone: whether the session has the machine to itself, with one run at a time. Then idle threads spin
            for a while, ready for the next node, and memory is planned for a whole run at once.
        exact: give the same outputs on every machine and in every run. Products of 8-bit integers are summed
            exactly: without VNNI, ONNX Runtime's kernels add pairs of products in 16 bits, which saturates.
            Random operators are held (`calibrators.held_noise`). Both can be slower, so turn this off to
            measure times. For other models and machines it makes no difference.
        save_fused: write the graph to this path as it is after fusions, with weights in a file beside it.
            Later rewrites of the memory layout are left out, so nodes keep their names.
        layout: with ``save_fused``, keep these rewrites too.
        profile: measure the time of each node. `end_profiling` returns the name of the profile, which begins
            with this prefix. The graph as it runs is written to the prefix plus ``.onnx``.

    Raises:
        CalibrationError: a provider or tensor is unknown, or ONNX Runtime refuses the model.
    """
    _check_providers(providers)
    options = _options(threads, optimize, alone)
    if save_fused is not None:
        if not layout:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        _save_graph(options, Path(save_fused))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
        _save_graph(options, Path(f"{os.fspath(profile)}.onnx"))
    loaded = as_model(model)
    if loaded.meta.get(TRIMMED):  # ONNX Runtime's fusions take no last inputs without a name
        model = loaded
    is_plain, saturated = not optimize or profile is not None, False
    if exact and save_fused is None:
        model, saturated = _prepared(model, loaded, is_plain)
    try:
        session = (_open_exact if saturated else _open)(model, outputs, options, providers)
    except CalibrationError as error:
        if not exact or save_fused is not None or is_plain:
            raise
        session = _open_unfused(model, outputs, options, providers, error)
    if any(map(_is_recurrent, _nodes(loaded))):
        _RECURRENT.add(session)
    return session


def checked_feeds(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``feeds`` in the float types that the session takes, which a converted model has changed.

    Raises:
        ValueError: an input of a recurrent model is empty: ONNX Runtime would end the process.
    """
    empty = [name for name, array in feeds.items() if getattr(array, "size", 1) == 0]
    if empty and session in _RECURRENT:
        raise ValueError(
            f"input {empty[0]!r} is empty, and ONNX Runtime's LSTM, GRU and RNN take no empty input"
        )
    types = {each.name: _FLOATS.get(each.type) for each in session.get_inputs()}
    return {name: _in_type(array, types.get(name)) for name, array in feeds.items()}


_FLOATS = {"tensor(float16)": np.dtype(np.float16), "tensor(float)": np.dtype(np.float32)}


def _in_type(array: Any, dtype: Any) -> Any:
    known = dtype is not None and getattr(array, "dtype", None) in _FLOATS.values()
    return array.astype(dtype) if known and array.dtype != dtype else array


_RECURRENT: WeakSet[ort.InferenceSession] = WeakSet()
"""The sessions of models with LSTM, GRU or RNN."""


def _is_recurrent(node: ir.Node) -> bool:
    return node.op_type in ("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM")


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield all nodes, also those in bodies and functions."""
    return (node for root in root_graphs(model) for node in ir.traversal.RecursiveGraphIterator(root))


@cache
def saturates() -> bool:
    """Whether ONNX Runtime's u8 x s8 kernels saturate on this machine.

    On x86 without VNNI they add pairs of products in 16 bits, and 2 * 255 * 127 does not fit. With 7-bit
    weights the sums fit.
    """
    width = 32
    weights = onnx.numpy_helper.from_array(np.full((width, width), 127, np.int8), "w")
    product = onnx.helper.make_node("MatMulInteger", ["probe", "w"], ["y"])
    x = onnx.helper.make_tensor_value_info("probe", onnx.TensorProto.UINT8, [1, width])
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [1, width])
    graph = onnx.helper.make_graph([product], "product", [x], [y], [weights])
    opsets = [onnx.helper.make_opsetid("", 13)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = _create(model.SerializeToString(), _options(1, True, True), ("CPUExecutionProvider",))
    (found,) = session.run(None, {"probe": np.full((1, width), 255, np.uint8)})
    return bool(found[0, 0] != 255 * 127 * width)


def brief(error: BaseException) -> str:
    """Shorten a runtime error to one line, without the parts that help only ONNX Runtime's developers."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


def _open(
    model: Model,
    outputs: Sequence[str],
    options: ort.SessionOptions,
    providers: Sequence[str],
) -> ort.InferenceSession:
    if not isinstance(model, ir.Model) and not outputs:
        return _create(os.fspath(model), options, providers)
    model = as_model(model)
    model = _with_outputs(model, outputs) if outputs else model
    if not _needs_file(model):
        return _create(to_proto(model).SerializeToString(), options, providers)
    with tempfile.TemporaryDirectory(prefix="calibrate-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        _write(model, path)
        return _create(str(path), options, providers)


def _prepared(model: Model, loaded: ir.Model, is_plain: bool) -> tuple[Model, bool]:
    """Hold random operators, and find out whether 8-bit kernels would saturate.

    The file of a model is read once, and left to ONNX Runtime if nothing in it has to change: so its weights
    are not in memory twice while ONNX Runtime loads them.

    Args:
        model: a model, or the path of one.
        loaded: the same, loaded.
        is_plain: run the model as it is otherwise, without exact kernels.

    Returns:
        What to open, and whether to open it with exact kernels.
    """
    held = hold(loaded)
    saturated = not is_plain and saturates() and not has_blocks(held)
    if saturated:
        held = with_zero_points(held)
    return (model if held is loaded else held), saturated


def _open_unfused(
    model: Model,
    outputs: Sequence[str],
    options: ort.SessionOptions,
    providers: Sequence[str],
    error: CalibrationError,
) -> ort.InferenceSession:
    """Open a model that does not load with fusions: some make nodes that ONNX Runtime then refuses itself.

    For example it moves a QuantizeLinear of opset 21 across a Reshape without the type of its zero point.

    Raises:
        CalibrationError: ``error``, if it does not load without fusions either.
    """
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    try:
        session = _open(model, outputs, options, providers)
    except CalibrationError:
        raise error from error.__cause__
    logger.warning("%s; without fusions it does, and is run like that.", error)
    return session


def _open_exact(
    model: Model,
    outputs: Sequence[str],
    options: ort.SessionOptions,
    providers: Sequence[str],
) -> ort.InferenceSession:
    options.add_session_config_entry("session.x64quantprecision", "1")
    try:
        return _open(model, outputs, options, providers)
    except CalibrationError as error:
        if NAME_TAKEN not in str(error.__cause__):
            raise
    return _open(with_own_weights(as_model(model)), outputs, options, providers)


def _check_providers(providers: Sequence[str]) -> None:
    available = ort.get_available_providers()
    unknown = [name for name in providers if name not in available]
    if unknown or not providers:
        raise CalibrationError(
            f"execution provider {', '.join(unknown) or '(none)'} is not in this ONNX Runtime; "
            f"available: {', '.join(available)}"
        )


def _options(threads: int, optimize: bool, alone: bool) -> ort.SessionOptions:
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = SILENT
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(alone)))
    options.enable_mem_pattern = alone  # otherwise it keeps the memory plans of all concurrent runs
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return options


def _save_graph(options: ort.SessionOptions, path: Path) -> None:
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_file_name", f"{path.name}.data"
    )


def _create(
    source: str | bytes, options: ort.SessionOptions, providers: Sequence[str]
) -> ort.InferenceSession:
    try:
        session = ort.InferenceSession(source, options, providers=list(providers))
    except RUNTIME_ERRORS as error:
        where = f" {source}" if isinstance(source, str) else ""
        raise CalibrationError(f"ONNX Runtime cannot load the model{where}: {brief(error)}") from error
    if providers[0] not in session.get_providers():  # ONNX Runtime falls back to the CPU silently
        raise CalibrationError(
            f"execution provider {providers[0]} does not start on this machine: its libraries or its "
            "device are missing"
        )
    return session


def as_model(model: Model) -> ir.Model:
    """Return a model as it is, and load that of a path.

    Raises:
        CalibrationError: the file cannot be read.
    """
    if isinstance(model, ir.Model):
        return model
    try:
        return read_model(model)
    except (OSError, ValueError, TypeError, DecodeError) as error:
        raise CalibrationError(
            f"{os.fspath(model)} cannot be read as an ONNX model: {brief(error)}"
        ) from error


def _with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """Copy the model (weights shared) and make the tensors called ``names`` outputs as well."""
    copy = model.clone()
    graph = copy.graph
    values = {value.name: value for value in _values(graph)}
    present = {value.name for value in graph.outputs}
    wanted = [name for name in dict.fromkeys(names) if name not in present]
    missing = [name for name in wanted if name not in values]
    if missing:
        raise CalibrationError(_describe_missing(missing, copy))
    graph.outputs.extend(values[name] for name in wanted)
    return copy


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    """Yield the tensors of one graph, without those of graphs inside its nodes."""
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from (value for value in node.outputs if value.name)


def _describe_missing(missing: Sequence[str], model: ir.Model) -> str:
    inner = {value.name for graph in model.graphs() if graph is not model.graph for value in _values(graph)}
    hidden = [name for name in missing if name in inner]
    if hidden:
        return (
            f"tensor {', '.join(hidden)} lies inside a branch or loop body: only the main graph is observed"
        )
    return f"no tensor called {', '.join(missing)} in the graph {model.graph.name or ''}".rstrip()


def _needs_file(model: ir.Model) -> bool:
    """Whether the weights are too large for one protobuf message, or in external files."""
    tensors = list(stored_tensors(model))
    return (
        any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
        or sum(tensor.nbytes for tensor in tensors) > INLINE_LIMIT
    )


def _write(model: ir.Model, path: Path) -> None:
    try:
        save_model(model, path, external=True, most_bytes=INLINE_BYTES)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"a temporary copy of the model cannot be written to {path.parent}: {brief(error)}"
        ) from error
