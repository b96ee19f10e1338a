"""Check files and models before the work begins, and find out whose fault an error is."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

import calibrators.errors
from calibrators.onnx_files import root_graphs
from calibrators.session import open_session
from onnxq.calibration.tables.table_files import format_for
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError, OnnxqError
from onnxq.graph.files import check_place, data_files, files_of
from onnxq.graph.nodes import all_nodes
from onnxq.graph.validity import check_valid
from onnxq.planner.context import matches
from onnxq.targets.yaml_file import SUFFIXES

logger = logging.getLogger(__name__)

QUANTIZED = re.compile(
    r".*(Q|Deq)uantizeLinear|.*QuantizeDequantize|QLinear.*|QGemm|.*Integer(ToFloat)?|.*NBits"
)
"""The names of operators, of any domain, that no float model has."""

COMPILED_DOMAINS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
"""The domains of operators that work on a memory layout of one kind of processor."""


def check_files(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: object,
    config: QuantConfig,
    others: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Check that all files of a quantization can be written and overwrite none that it reads.

    Args:
        model: path of the float model.
        output: path of the model to be written.
        data: calibration data; checked if it is a path.
        config: the options, which name further files.
        others: more files to be written.

    Raises:
        ModelError: a file cannot be written, or would overwrite another one.
        ConfigError: the format of a table is unknown.
    """
    check_written([*files_written(output, config), *map(Path, others)], model, data, config)


def files_written(output: str | os.PathLike[str], config: QuantConfig) -> list[Path]:
    """List the files that a quantization writes, and those of weights that it would replace."""
    first, *others = data_files(Path(output))
    tables = [file for path, name in config.tables for file in format_for(path, name).files(path)]
    asked = (
        output,
        first,
        *(file for file in others if file.exists()),
        config.save_statistics,
        config.search_log,
        config.report,
        *tables,
    )
    return [Path(path) for path in asked if path]


def check_written(written: Sequence[Path], model: object, data: object, config: QuantConfig) -> None:
    """Check that files can be written, and are none of those that a command reads.

    These are the model with its external data, the calibration data, and the files of the options: a table or
    statistics, a target, the file that the options come from.

    Args:
        written: the files to be written.
        model: path of the model that is read; not checked if it is no path.
        data: calibration data; not checked if it is no path.
        config: the options.

    Raises:
        ModelError: as for `check_places`.
    """
    needed: tuple[object, ...] = (model,)
    if isinstance(model, str | os.PathLike) and any(path.exists() for path in written):
        needed = files_of(model)
    target = config.target if config.target.endswith(SUFFIXES) else None
    task = config.metric.rpartition(":")[0] if ".py:" in str(config.metric) else None
    given = (data, config.data, config.labels, task, config.from_table, config.file, target)
    check_places((*needed, *given), written)


def check_places(read: Iterable[object], written: Sequence[str | os.PathLike[str]]) -> None:
    """Check that the files to be written can be written, and are none of those that are read.

    Items of ``read`` that are no path are ignored; a directory stands for all files in it.

    Raises:
        ModelError: a file cannot be written, or would overwrite another one.
    """
    goals = [Path(path) for path in written]
    taken = [Path(path) for path in read if isinstance(path, str | os.PathLike)]
    for goal in goals:
        check_place(goal)
        if clash := next((path for path in taken if _same(path, goal)), None):
            raise ModelError(f"{goal}: would overwrite {clash}, which is needed: give another name.")
        taken.append(goal)


def _same(one: Path, goal: Path) -> bool:
    """Whether both are the same file, existing or not, or ``goal`` is in the directory ``one``."""
    if one.is_dir():
        return goal.exists() and Path(os.path.realpath(goal)).is_relative_to(os.path.realpath(one))
    if one.exists() and goal.exists():
        return one.samefile(goal)
    return os.path.realpath(one) == os.path.realpath(goal)


def check_is_float(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Refuse a model that is quantized already, or that was compiled for one machine.

    Raises:
        ModelError: the model is quantized, or has operators that ONNX Runtime makes for one processor.
    """
    if (node := next((n for n in all_nodes(model) if n.domain in COMPILED_DOMAINS), None)) is not None:
        raise ModelError(
            f"{path}: optimized by ONNX Runtime for one kind of processor, in a form that cannot be "
            f"quantized (node {node.name!r} is a {node.op_type} of {node.domain}). Give the original model, "
            "or let ONNX Runtime write it with GraphOptimizationLevel.ORT_ENABLE_BASIC at most."
        )
    node = quantized_node(model)
    if node is not None:
        raise ModelError(
            f"{path}: already quantized (node {node.name!r} is a {node.op_type}); give the float model, or "
            "'onnxq requantize' a model with Q/DQ."
        )


def quantized_node(model: ir.Model) -> ir.Node | None:
    """Find the first node, in functions too, that no float model has."""
    nodes = (node for root in root_graphs(model) for node in ir.traversal.RecursiveGraphIterator(root))
    return next((node for node in nodes if QUANTIZED.fullmatch(node.op_type)), None)


def check_patterns(model: ir.Model, config: QuantConfig) -> None:
    """Warn about patterns to exclude, include or override that match no node."""
    overridden = (override.pattern for override in config.overrides)
    for pattern in (*config.exclude, *config.include, *overridden):
        if not any(matches(node, pattern) for node in all_nodes(model)):
            logger.warning(
                "pattern %r matches no node of the cleaned model: a typo? 'onnxq inspect' lists them", pattern
            )


@contextmanager
def _diagnosed(*models: str | os.PathLike[str]) -> Iterator[None]:
    """After an unexpected error, check whether a model is at fault: with onnx's checker and by loading it.

    Raises:
        ModelError: a model is not valid.
        CalibrationError: ONNX Runtime cannot load a model.
    """
    try:
        yield
    except (OnnxqError, calibrators.errors.CalibrationError, OSError, MemoryError):
        raise
    except Exception:
        for model in models:
            check_valid(model, f"{model}: the model is not valid ONNX")
            open_session(model)
        raise


@contextmanager
def as_onnxq_errors(*models: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of the package `calibrators`, and what invalid models cause, into onnxq's errors.

    Args:
        models: the models that foreign tools wrote: after an unexpected error, they are checked.
    """
    try:
        with _diagnosed(*models):
            yield
    except calibrators.errors.CalibrationError as error:
        if isinstance(error, CalibrationError):
            raise
        raise CalibrationError(str(error)) from error
