"""Two models side by side: accuracy and speed of an int8 model against its float original."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from itertools import chain

import onnx_ir as ir

from onnxq.config import QuantConfig
from onnxq.errors import ModelError
from onnxq.evaluate import Quality, compare
from onnxq.guards import our_errors
from onnxq.model import load
from onnxq.progress import Progress, silent
from onnxq.race import Speed, race
from onnxq.samples import in_batches, open_samples

logger = logging.getLogger(__name__)


def compare_files(
    float_path: str | os.PathLike[str],
    int8_path: str | os.PathLike[str],
    config: QuantConfig,
    progress: Progress = silent,
) -> tuple[Quality, Speed]:
    """How close and how fast ``int8_path`` is, on ``config.data`` (synthetic inputs without it).

    Raises:
        OnnxqError: a model or the data cannot be used.
    """
    with our_errors():
        model = load(float_path)
        check_alike(model, load(int8_path))
        samples = open_samples(model, config.data, config)
        if samples.synthetic:
            logger.warning("compared on synthetic inputs, which say little: give real samples as data")
        batches = in_batches(samples.source, model, config)
        batch = next(batches)
        quality = compare(
            float_path,
            int8_path,
            chain((batch,), batches),
            providers=config.providers,
            threads=config.threads,
            on_sample=lambda done: progress("comparing", done + samples.skipped, samples.total),
            on_bad=samples.on_refused,
        )
        progress("timing")
        return quality, race(
            float_path, int8_path, batch, providers=config.providers, threads=config.threads or 1
        )


def check_alike(float_model: ir.Model, int8_model: ir.Model) -> None:
    """Check that two models can be compared: inputs are matched by name, outputs by position.

    Raises:
        ModelError: they differ in number, name, type or size.
    """
    ours, theirs = ({v.name: v for v in _inputs(model)} for model in (float_model, int8_model))
    if ours.keys() != theirs.keys() or not all(_fits(ours[name], theirs[name]) for name in ours):
        raise _different("inputs", ours.values(), theirs.values())
    one, other = float_model.graph.outputs, int8_model.graph.outputs
    if len(one) != len(other) or not all(map(_fits, one, other)):
        raise _different("outputs", one, other)


def _inputs(model: ir.Model) -> list[ir.Value]:
    return [value for value in model.graph.inputs if value.name not in model.graph.initializers]


def _fits(one: ir.Value, other: ir.Value) -> bool:
    """The same type, and no two known sizes that differ."""
    if one.dtype != other.dtype:
        return False
    if one.shape is None or other.shape is None:
        return True
    sizes = zip(one.shape, other.shape, strict=False)
    known = [(a, b) for a, b in sizes if isinstance(a, int) and isinstance(b, int)]
    return len(one.shape) == len(other.shape) and all(a == b for a, b in known)


def _different(kind: str, ours: Iterable[ir.Value], theirs: Iterable[ir.Value]) -> ModelError:
    first, second = (
        ", ".join(f"'{v.name}' ({v.dtype} {v.shape})" for v in values) or "none" for values in (ours, theirs)
    )
    return ModelError(f"the models have different {kind} and cannot be compared: {first}; {second}")
