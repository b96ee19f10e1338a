"""Store a decoder's cache of keys and values in int8: `onnxq cache`.

The cache is what a long generation keeps in memory, and a quarter of it is left. Weights and activations stay
as they are: the model may be float, or quantized in any mode.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from calibrators.collect import run_batch
from calibrators.data.caches import Cache, find_caches
from calibrators.data.samples import Sample
from calibrators.errors import shorten
from calibrators.session import open_session
from onnxq.calibration.sample_split import Data, Samples, in_batches, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.plan import LEAST_SCALE
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import CONVERT, refuse
from onnxq.graph.files import load, size_on_disk, write_validated
from onnxq.graph.half_precision.simulate import unrounded
from onnxq.graph.integer_caches import OPSET_OF_SCALES, CacheScale, quantize_caches, round_caches
from onnxq.graph.nodes import name_of
from onnxq.graph.passes import plain, typed
from onnxq.graph.passes.opset import OPSETS
from onnxq.pipelines.acceptance import output_warnings
from onnxq.pipelines.preflight import as_onnxq_errors, check_files
from onnxq.verify.accuracy import AccuracyEvaluator, Quality

Floats = NDArray[np.float32]

HIGHEST = 127
"""The largest magnitude of an integer in the cache."""

_TAKES_NO = "a cache in int8 takes no {}: leave them out"

_NO_CACHE = (
    "{}: it has no float cache of keys and values: no float input comes back as an output with new values in "
    "it. Export the decoder with its past as inputs."
)
_NO_DATA = (
    "NO DATA: the ranges of keys and values were measured on random inputs, and others may be clipped. Give "
    "real samples with --data."
)


@dataclass(frozen=True)
class CacheResult:
    """The result of storing caches in int8.

    Attributes:
        axes: name of a cache's output -> the axis along which its scales change; None: it has one scale.
        position_bytes: bytes of all caches for a position of a sequence, before and after; None if unknown.
        quality: accuracy with all positions rounded, against the given model.
        judged_on: the kind of samples that it was measured on.
        warnings: warnings about the result.
        before, after: file sizes in bytes, external weights included.
        seconds: duration of the work.
    """

    axes: Mapping[str, int | None]
    position_bytes: tuple[int, int] | None
    quality: Quality
    judged_on: str
    warnings: tuple[str, ...]
    before: int
    after: int
    seconds: float


def quantize_cache(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> CacheResult:
    """Let the caches of ``model`` go in and come out as int8; write it to ``output``, whole or not at all.

    Args:
        model: path of a decoder whose float caches are inputs and outputs; float or quantized.
        output: path of the model to write.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches: it shows the ranges of
            keys and values, and some of it is held out to compare on.
        config: how samples are read and run.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: the model has no such cache, or it or the data cannot be used.
    """
    started = time.perf_counter()
    config = config or QuantConfig()
    refuse(config, (*CONVERT, "float_type", "io_types", "exclude"), _TAKES_NO)
    data = config.data if data is None else data
    check_files(model, output, data, config)
    with as_onnxq_errors(model):
        progress("reading the model")
        original = _with_scales(load(model))
        caches = find_caches(original.graph)
        if not caches:
            raise ModelError(_NO_CACHE.format(os.fspath(model)))
        samples = open_samples(original, data, config)
        for _ in samples:
            progress("reading samples", samples.given, samples.total)
        scales = _measured(original, caches, list(in_batches(samples.fit_samples, original, config)), config)
        progress("comparing with the given model")
        quality = _compared(original, scales, samples, config)
        changed = original.clone()
        quantize_caches(changed, scales)
        progress("writing and checking the model")
        after = write_validated(changed, output, lambda draft: _checked(draft, config))
    return CacheResult(
        axes={name_of(cache.present): scales[name_of(cache.past)].axis for cache in caches},
        position_bytes=_position_bytes(caches),
        quality=quality,
        judged_on=samples.eval_source,
        warnings=tuple(_warnings(samples, quality)),
        before=size_on_disk(model),
        after=after,
        seconds=time.perf_counter() - started,
    )


def _with_scales(model: ir.Model) -> ir.Model:
    """Raise the opset of a model to the one that has the scales, as its caches' type needs."""
    types = {cache.past.dtype for cache in find_caches(model.graph)}
    wanted = max((OPSETS[each] for each in types if each in OPSETS), default=OPSET_OF_SCALES)
    return plain(model, wanted) if model.graph.opset_imports.get("", 1) < wanted else typed(model)


def _measured(
    model: ir.Model, caches: Sequence[Cache], batches: Sequence[Sample], config: QuantConfig
) -> dict[str, CacheScale]:
    """Run the model, and choose the scales of its caches from all keys and values that it gave."""
    names = [name_of(cache.present) for cache in caches]
    session = open_session(model, outputs=names, providers=config.providers, threads=config.threads)
    found: dict[str, dict[int | None, Floats]] = {name: {} for name in names}
    for batch in batches:
        for cache, array in zip(caches, run_batch(session, names, batch), strict=True):
            sizes, known = np.abs(np.asarray(array, np.float32)), found[name_of(cache.present)]
            for axis in _axes(cache) if sizes.size else ():
                others = tuple(d for d in range(sizes.ndim) if d != axis)
                largest = sizes.max(axis=others, keepdims=False).reshape(-1)
                known[axis] = np.maximum(known.get(axis, np.float32(0)), largest)
    empty = [name for name, largest in found.items() if not largest]
    if empty:
        raise CalibrationError(f"no sample gives keys or values: {shorten(empty)} is empty for all of them")
    return {name_of(cache.past): _finest(found[name_of(cache.present)]) for cache in caches}


def _axes(cache: Cache) -> list[int | None]:
    """Return the axes along which scales may change: those of one size in all steps, without the batch's."""
    shape = cache.past.shape
    if shape is None or cache.axis is None:
        return [None]
    return [None, *(d for d in range(1, len(shape)) if d != cache.axis and isinstance(shape[d], int))]


def _finest(largest: Mapping[int | None, Floats]) -> CacheScale:
    """Choose the axis with the least error: the mean square of the steps, a twelfth of which is the noise."""
    axis = min(largest, key=lambda each: float(np.square(largest[each]).mean()))
    scale = np.maximum(largest[axis] / HIGHEST, LEAST_SCALE).astype(np.float32)
    return CacheScale(scale, axis)


def _compared(
    model: ir.Model, scales: Mapping[str, CacheScale], samples: Samples, config: QuantConfig
) -> Quality:
    batches = list(in_batches(samples.eval_samples, model, config))
    evaluator = AccuracyEvaluator(
        unrounded(model), batches, providers=config.providers, threads=config.threads
    )
    return evaluator.evaluate(unrounded(round_caches(model, scales)))


def _checked(draft: Path, config: QuantConfig) -> int:
    """Open the written file, and measure its size."""
    open_session(draft, providers=config.providers, threads=config.threads, exact=False)
    return size_on_disk(draft)


def _position_bytes(caches: Sequence[Cache]) -> tuple[int, int] | None:
    """Return the bytes of a position in all caches as floats and as integers; None if sizes are unknown."""
    before = after = 0
    for cache in caches:
        shape = cache.past.shape
        if shape is None or cache.axis is None or cache.past.dtype is None:
            return None
        sizes = [size for d, size in enumerate(shape) if d not in (0, cache.axis)]
        if not all(isinstance(size, int) for size in sizes):
            return None
        count = int(np.prod([int(size) for size in sizes if isinstance(size, int)]))
        before, after = before + int(count * cache.past.dtype.itemsize), after + count
    return before, after


def _warnings(samples: Samples, quality: Quality) -> Iterator[str]:
    if samples.synthetic:
        yield _NO_DATA
    yield from samples.warnings
    yield from output_warnings(quality, "Keep the cache in float.")
