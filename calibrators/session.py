"""Open ONNX Runtime sessions: the one place where a model becomes something that runs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from calibrators.errors import CalibrationError
from calibrators.external import load_external

INLINE_BYTES = 256
"""A tensor of at most so many stays in the model, where shape inference finds it."""

INLINE_LIMIT = 2**30
"""Weights, in bytes, that are handed over in memory. Protobuf stops at 2 GiB; files have no limit."""

SILENT = 4
"""ONNX Runtime's severity "fatal": what it would log as an error is also raised, and we raise it on."""

MESSAGE_LIMIT = 300

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(kind for kind in vars(_state).values() if isinstance(kind, type) and issubclass(kind, Exception)),
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
)
"""What a session raises, at loading and at running: ONNX Runtime's own classes share no base."""


def open_session(
    model: ir.Model | str | os.PathLike[str],
    *,
    outputs: Sequence[str] = (),
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    optimize: bool = True,
    alone: bool = True,
    save_fused: str | os.PathLike[str] | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> ort.InferenceSession:
    """A session that runs ``model``; the caller's model is left as it is.

    Args:
        model: a model, or the path of one.
        outputs: tensors of the main graph to be returned after the model's own outputs.
            Those that already are outputs are not repeated.
        providers: execution providers, the preferred one first.
        threads: threads within a node; 0 leaves it to ONNX Runtime.
        optimize: let ONNX Runtime fuse and rewrite nodes.
        alone: nothing else is to be done meanwhile, and runs come one after the other: idle threads
            keep a processor busy for a while, ready for the next node, and memory is planned for a whole
            run at once.
        save_fused: write the graph there as it is after fusions (weights in a file beside it); later
            rewrites, of the memory layout, are left out, so that nodes keep their names.
        profile: note how long each node takes: `end_profiling` gives the file's name, which begins with
            this. The graph as it runs is written beside it, to this and ``.onnx``.

    Raises:
        CalibrationError: an unknown provider or tensor, or a model that ONNX Runtime refuses.
    """
    _check_providers(providers)
    options = _options(threads, optimize, alone)
    if save_fused is not None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        _save_graph(options, Path(save_fused))
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = os.fspath(profile)
        _save_graph(options, Path(f"{os.fspath(profile)}.onnx"))
    if not isinstance(model, ir.Model):
        if not outputs:
            return _create(os.fspath(model), options, providers)
        model = load_model(model)
    model = _with_outputs(model, outputs) if outputs else model
    if not _needs_file(model):
        return _create(ir.to_proto(model).SerializeToString(), options, providers)
    with tempfile.TemporaryDirectory(prefix="calibrate-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / "model.onnx"
        _write(model, path)
        return _create(str(path), options, providers)


def brief(error: BaseException) -> str:
    """What a runtime error says, on one line and without the parts that only its developers read."""
    text = " ".join(str(error).split())
    if text.startswith("[ONNXRuntimeError]"):
        text = text.split(" : ", 3)[-1]
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"


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
    options.enable_mem_pattern = alone  # else it keeps the plans of all runs that ever were side by side
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
    if providers[0] not in session.get_providers():  # it falls back to the CPU without a word
        raise CalibrationError(
            f"execution provider {providers[0]} does not start on this machine: its libraries or its "
            "device are missing"
        )
    return session


def load_model(path: str | os.PathLike[str]) -> ir.Model:
    """The model of a file.

    Raises:
        CalibrationError: it cannot be read.
    """
    try:
        return ir.load(path)
    except (OSError, ValueError, TypeError, DecodeError) as error:
        raise CalibrationError(
            f"{os.fspath(path)} cannot be read as an ONNX model: {brief(error)}"
        ) from error


def _with_outputs(model: ir.Model, names: Iterable[str]) -> ir.Model:
    """A copy (weights shared) whose graph also returns the tensors called ``names``."""
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
    """The tensors of one graph, without those of graphs inside its nodes."""
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
    """Are the weights too large for one message, or already outside of it?"""
    tensors = [
        value.const_value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    ]
    return (
        any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
        or sum(tensor.nbytes for tensor in tensors) > INLINE_LIMIT
    )


def _write(model: ir.Model, path: Path) -> None:
    try:
        copy = model.clone()
        load_external(copy, INLINE_BYTES)
        ir.save(copy, path, external_data=f"{path.name}.data", size_threshold_bytes=INLINE_BYTES)
    except (OSError, ValueError) as error:
        raise CalibrationError(
            f"a temporary copy of the model cannot be written to {path.parent}: {brief(error)}"
        ) from error
