"""Convert a model to another float type, without quantization: `onnxq convert`."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx_ir as ir

from calibrators.data.samples import Sample
from calibrators.session import open_session
from onnxq.algorithms.float32_nodes import GOOD, Runs, choose_float32
from onnxq.calibration.sample_split import Data, Samples, evenly, in_batches, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError
from onnxq.core.option_types import FloatType
from onnxq.core.plan import OPSET
from onnxq.core.progress import Progress, silent
from onnxq.core.unused import CONVERT, refuse
from onnxq.graph.files import load, size_on_disk, write_validated
from onnxq.graph.half_precision.narrow import Narrowing, narrow, remove_casts
from onnxq.graph.half_precision.simulate import runnable, unrounded
from onnxq.graph.half_precision.widen import HALF, OTHERS, needs_double, use_float32
from onnxq.graph.nodes import all_nodes, is_op, name_of
from onnxq.graph.passes import plain
from onnxq.graph.passes.opset import OPSETS
from onnxq.graph.passes.redundancy import RemoveUnusedPass
from onnxq.graph.slim import slim
from onnxq.pipelines.preflight import as_onnxq_errors, check_files
from onnxq.planner.context import matches
from onnxq.planner.number_formats import FLOAT_TYPES
from onnxq.verify.accuracy import AccuracyEvaluator, Quality

EXCLUDED = "it is excluded"

ENOUGH = {ir.DataType.FLOAT: 60.0, ir.DataType.FLOAT16: 40.0, ir.DataType.BFLOAT16: 25.0}
"""Type -> the SQNR in dB of the worst output below which a converted model is warned of."""

_LEAST = -10 * math.log10(GOOD)
"""`GOOD` as an SQNR in dB."""

JUDGED_ON = 16
"""The largest number of batches that the written model is compared on."""

NO_DATA = (
    "NO DATA: the ranges of tensors are unknown, so nodes whose results may be of any size stay in float32; "
    "others may overflow on real samples. Give some with --data."
)


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        dtype: the float type.
        narrowed: number of nodes that compute in it, by operator.
        float32: name of each node that stays in float32 -> the reason.
        casts: number of Cast nodes in the written model.
        quality: accuracy against the given model.
        judged_on: the kind of samples that it was measured on.
        warnings: warnings about the result.
        before, after: file sizes in bytes, external weights included.
        seconds: duration of the conversion.
    """

    dtype: ir.DataType
    narrowed: Mapping[str, int]
    float32: Mapping[str, str]
    casts: int
    quality: Quality
    judged_on: str
    warnings: tuple[str, ...]
    before: int
    after: int
    seconds: float


def convert(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    data: Data | None = None,
    config: QuantConfig | None = None,
    progress: Progress = silent,
) -> Converted:
    """Convert ``model`` to the float type of ``config`` and write it to ``output``, whole or not at all.

    Nodes that would overflow or lose precision stay in float32. Integers of a quantized model stay as they
    are.

    Args:
        model: path of an ONNX model.
        output: path of the model to write.
        data: as ``config.data``, or any iterable of ``{input name: array}`` batches. It shows the range of
            each tensor, and the written model is compared on it.
        config: ``float_type`` (float16 if None), ``io_types``, ``exclude`` (nodes that stay in float32), and
            how samples are read and run.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: the model or the data cannot be used.
    """
    started = time.perf_counter()
    config = config or QuantConfig()
    refuse(config, CONVERT, "a conversion without quantization takes no {}: leave them out")
    dtype = _float_type(config.float_type)
    data = config.data if data is None else data
    check_files(model, output, data, config)
    with as_onnxq_errors(model):
        progress("reading the model")
        original = load(model)
        samples = open_samples(original, data, config)
        batches = _batches(samples, original, config, progress)
        known = [] if samples.synthetic else batches
        check = partial(_checked, original, evenly(batches, JUDGED_ON), config)
        progress("writing and checking the model")
        is_searched = bool(known) and dtype == ir.DataType.FLOAT16
        try:
            made = _converted(original, known, dtype, config, good=math.inf)
            quality, size = write_validated(made.model, output, partial(check, refuse_poor=is_searched))
        except _PoorError:
            progress("looking for nodes that need float32")
            made = _converted(original, known, dtype, config, good=GOOD)
            quality, size = write_validated(made.model, output, check)
    return Converted(
        dtype=dtype,
        narrowed=made.narrowed,
        float32=made.chosen.float32,
        casts=sum(is_op(node, "Cast") for node in all_nodes(made.model)),
        quality=quality,
        judged_on="synthetic inputs" if samples.synthetic else "samples",
        warnings=tuple(_warnings(samples, quality, dtype)),
        before=size_on_disk(model, original),
        after=size,
        seconds=time.perf_counter() - started,
    )


def _float_type(name: FloatType | None) -> ir.DataType:
    """Return the type to convert to.

    Raises:
        ConfigError: ``name`` asks for no conversion.
    """
    if name == "keep":
        raise ConfigError("a conversion to the float type that the model has (float_type keep) does nothing")
    return FLOAT_TYPES[name or "float16"]


def _batches(samples: Samples, model: ir.Model, config: QuantConfig, progress: Progress) -> Sequence[Sample]:
    """Read the samples, and keep some of them, evenly spread."""
    for _ in samples:
        progress("reading samples", samples.given, samples.total)
    return list(in_batches(samples.fit_samples, model, config))


class _PoorError(Exception):
    """The rules alone give a model that is too far from the given one."""


@dataclass(frozen=True)
class _Made:
    """A converted model, what stays in float32 in it, and how many nodes do not, by operator."""

    model: ir.Model
    chosen: Narrowing
    narrowed: Mapping[str, int]


def _converted(
    original: ir.Model, batches: Sequence[Sample], dtype: ir.DataType, config: QuantConfig, good: float
) -> _Made:
    """Convert a copy of the model; where an output has more noise than ``good``, more nodes stay float32."""
    needs_newer = dtype == ir.DataType.BFLOAT16 or _has_pairs(original)
    model = plain(original, OPSETS.get(dtype, OPSET) if needs_newer else OPSET)
    keep_io = config.io_types == "keep"
    use_float32(model, HALF if needs_double(model) else OTHERS, keep_io=keep_io)
    remove_casts(model)
    chosen = Narrowing(dtype, {}, keep_io)
    if dtype != ir.DataType.FLOAT:
        excluded = (n for n in all_nodes(model) if any(matches(n, each) for each in config.exclude))
        given = {name_of(node): EXCLUDED for node in excluded}
        chosen = choose_float32(model, Runs.of(batches, config), dtype, given, good)
        narrow(model, Narrowing(dtype, chosen.float32, keep_io))
    RemoveUnusedPass()(model)
    narrowed = _counted(model, dtype)
    slim(model)
    return _Made(model, chosen, narrowed)


def _has_pairs(model: ir.Model) -> bool:
    return any(is_op(node, "QuantizeLinear", "DequantizeLinear") for node in all_nodes(model))


def _checked(
    original: ir.Model,
    batches: Sequence[Sample],
    config: QuantConfig,
    draft: Path,
    refuse_poor: bool = False,
) -> tuple[Quality, int]:
    """Compare the written file with the given model, and measure its size.

    Half precision is simulated in float32. The file itself must open too, where ONNX Runtime has kernels.

    Raises:
        _PoorError: if ``refuse_poor``, an output is further from the given model's than `GOOD`.
    """
    opened = partial(open_session, draft, providers=config.providers, threads=config.threads)
    with ThreadPoolExecutor(1) as beside:  # to load a model takes one thread
        loaded = beside.submit(opened) if config.float_type != "bfloat16" else None
        evaluator = AccuracyEvaluator(
            unrounded(original), batches, providers=config.providers, threads=config.threads
        )
        written = load(draft)
        simulated = runnable(draft, written)
        if loaded is not None:
            loaded.result()
    quality = evaluator.evaluate(simulated)
    if refuse_poor and any(not each.finite or each.sqnr < _LEAST for each in quality.outputs.values()):
        raise _PoorError
    return quality, size_on_disk(draft, written)


def _counted(model: ir.Model, dtype: ir.DataType) -> dict[str, int]:
    """Count the nodes, by operator, that compute in a float type; Casts aside."""
    found = (
        node.op_type
        for node in all_nodes(model)
        if not is_op(node, "Cast") and any(value.dtype == dtype for value in node.outputs)
    )
    return dict(Counter(found).most_common())


def _warnings(samples: Samples, quality: Quality, dtype: ir.DataType) -> Iterator[str]:
    if samples.synthetic and dtype == ir.DataType.FLOAT16:
        yield NO_DATA
    yield from samples.warnings
    for name, output in quality.outputs.items():
        if not output.finite:
            yield f"output {name!r} of the converted model holds NaN or infinite numbers"
        elif output.sqnr < ENOUGH[dtype]:
            yield (
                f"INACCURATE: output {name!r} has an SQNR of {output.sqnr:.1f} dB only against the given "
                "model: --exclude keeps nodes in float32"
            )
