"""Quantization-aware training: `prepare_qat` before it, `convert_qat` behind it.

The same plan, of the same exported model, says where fake quantization stands in training and where Q and DQ
stand in the file: what is trained is what is written, and what post-training quantization would place.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from calibrators.data.samples import Array, Sample
from calibrators.errors import shorten
from calibrators.session import open_session
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.calibration.run import gather
from onnxq.calibration.sample_split import Data, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ModelError
from onnxq.core.numerics import sqnr
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.core.progress import silent
from onnxq.graph.files import check_place, write
from onnxq.graph.insert_qdq import as_written
from onnxq.pipelines.acceptance import StaticAcceptance
from onnxq.pipelines.preflight import as_onnxq_errors
from onnxq.pipelines.prepare import prepare_loaded
from onnxq.targets.lookup import get_target
from onnxq.torch.calls import Call, Example, example_call, to_numpy
from onnxq.torch.exporting import evaluating
from onnxq.torch.qat.batchnorm import fold
from onnxq.torch.qat.capture import Seen, capture
from onnxq.torch.qat.fake_quantize import FakeQuantize
from onnxq.torch.qat.module import (
    FAKE_QUANTIZERS,
    FakeQuantizers,
    QatModule,
    Recipe,
    assemble,
    prepared,
    recipe_of,
)
from onnxq.torch.qat.placement import Placement, TraceSite, find_places
from onnxq.torch.tracing import quiet
from onnxq.verify.accuracy import AccuracyEvaluator, class_axis
from onnxq.verify.verdict import Verdict

logger = logging.getLogger(__name__)

MANY_BITS = 8
"""Scales of grids with fewer bits are learned, if nobody says otherwise."""

POOR = 30.0
"""dB between the file and the module it was made of: below, something is amiss."""


@dataclass(frozen=True)
class QatResult:
    """What `convert_qat` wrote.

    Attributes:
        path: the file.
        plan: every quantized edge with its parameters.
        sqnr: of the outputs of the file, as it stands, against the fake-quantized module's, on the example
            inputs, in dB; the worst output's. What a runtime makes of the file is in ``verdicts``.
        agreement: the share (0 … 1) of equal decisions between them; None if nothing is decided.
        verdicts: what the target's rules and its runtimes say of the file.
        warnings: why the result should not be trusted, if so.
    """

    path: str
    plan: QuantPlan
    sqnr: float
    agreement: float | None
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]


def prepare_qat(
    module: nn.Module,
    example_inputs: Example,
    target: str | None = None,
    config: QuantConfig | None = None,
    *,
    data: Data | None = None,
    learn_scales: bool | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> nn.Module:
    """A copy of ``module`` that can be trained as it will be quantized.

    It is an instance of the same class, with the same parameters, buffers, submodules, methods and modes
    (``train()``, ``eval()``) and a child ``fake_quantizers`` more; train it with the usual loop.

    Args:
        module: any module that `torch.export` takes, on any device; it is not changed.
        example_inputs: what ``forward`` takes: a tensor, a tuple of arguments, or a dictionary of them.
        target: the deployment target; None: that of ``config``.
        config: the options; those of calibration choose the ranges that training starts from.
        data: batches to calibrate on, as ``forward`` takes them or as `quantize_static` does; what stands
            behind the inputs (labels) is passed over. None: ``config.data``, or else the example inputs.
        learn_scales: whether scales are parameters (LSQ); None: those of grids with less than 8 bits are.
        input_names: names of the ONNX model's inputs.
        output_names: names of its outputs.

    Raises:
        OnnxqError: the target is unknown, the module cannot be exported or has nothing to quantize, or the
            data does not fit.
    """
    options = config or QuantConfig()
    options = options if target is None else options.model_copy(update={"target": target})
    get_target(options.target)  # a wrong name is told before the work
    if isinstance(module, QatModule):
        raise ModelError(
            f"{type(module).__name__} is prepared already: train it, then give it to convert_qat()"
        )
    ours = copy.deepcopy(module)
    call = example_call(ours, example_inputs)
    with evaluating(ours):
        seen = capture(ours, call, input_names, output_names)
    simple, plan = prepare_loaded(seen.onnx, type(module).__name__, options)
    plan = _calibrated(simple, plan, _feeds(data or options.data, simple, call), options)
    placement = find_places(plan, simple, seen)
    _tell(placement, plan)
    quantizers = _insert(seen, placement, plan, learn_scales, call.tensors[0].device)
    recipe = {
        "captured": seen.captured,
        "config": options,
        "params": plan.params,
        "quantizers": {
            place.group.name: (_key(place.group.name), place.turned) for place in placement.places
        },
        "call": call,
        "types": {name: tensor.dtype for name, tensor in _state(ours).items()},
    }
    with quiet():
        return assemble(ours, seen.trace, quantizers, recipe)


def convert_qat(module: nn.Module, path: str | os.PathLike[str]) -> QatResult:
    """Write what was trained as a Q/DQ model, checked against the module; whole or not at all.

    Args:
        module: what `prepare_qat` returned, trained; perhaps wrapped, as by DistributedDataParallel.
        path: the file to write.

    Raises:
        OnnxqError: the module was not prepared, holds NaN, or the file cannot be written or run.
    """
    check_place(path)
    inner = prepared(module)
    recipe = recipe_of(inner)
    state = _state(inner)
    _check_types(state, recipe)
    with evaluating(inner), quiet():
        outputs = [to_numpy(tensor, "") for tensor in _moved(recipe.call, state).outputs(inner)]
    simple, plan = prepare_loaded(recipe.captured.onnx(state), type(inner).__name__, recipe.config)
    plan = compute_qparams(simple, plan, partial(_calibrated_params, recipe), _learned(inner, recipe))
    feeds = _sample(simple, recipe.call)
    found: list[tuple[float, float | None]] = []
    with as_onnxq_errors():
        trial = StaticAcceptance(
            AccuracyEvaluator(simple, [Sample("example inputs", feeds)]), plan, recipe.config
        )
        write(as_written(simple, plan), path, validate=partial(_check, trial, feeds, outputs, found))
    ratio, agreement = found[0]
    warnings = tuple(_warnings(ratio))
    for text in warnings:
        logger.warning("%s", text)
    return QatResult(os.fspath(path), plan, ratio, agreement, trial.verdicts, warnings)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, under every name that they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


# --- before training ----------------------------------------------------------------------------------


def _feeds(data: Data | None, simple: ir.Model, call: Call) -> Data:
    """``data`` as calibration reads it."""
    if data is None:
        return [_sample(simple, call)]
    return data if isinstance(data, str | os.PathLike) else _by_name(data, _names(simple))


def _names(simple: ir.Model) -> list[str]:
    return [value.name or "" for value in simple.graph.inputs if not value.is_initializer()]


def _sample(simple: ir.Model, call: Call) -> dict[str, Array]:
    return {name: to_numpy(tensor, name) for name, tensor in zip(_names(simple), call.tensors, strict=True)}


def _by_name(data: Iterable[Any], names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Batches of a loader: tensors or arrays, in order or by name, labels perhaps behind them."""
    for batch in data:
        if isinstance(batch, Mapping):
            given = dict(batch)
        else:
            parts = batch if isinstance(batch, tuple | list) else (batch,)
            if len(parts) < len(names):
                raise CalibrationError(
                    f"a batch of {len(parts)} tensors for {len(names)} inputs: {', '.join(names)}"
                )
            given = dict(zip(names, parts, strict=False))
        yield {name: to_numpy(v, name) if isinstance(v, torch.Tensor) else v for name, v in given.items()}


def _calibrated(simple: ir.Model, plan: QuantPlan, data: Data, config: QuantConfig) -> QuantPlan:
    with as_onnxq_errors():
        samples = replace(open_samples(simple, data, config), holds=False)
        statistics = gather(simple, plan.observed, samples, config, silent)
    return compute_qparams(simple, plan, from_statistics(statistics, calibrator(config)))


def _tell(placement: Placement, plan: QuantPlan) -> None:
    if not placement.unplaced:
        return
    names = placement.unplaced
    logger.warning(
        "%d of %d quantized tensors are float in training, because PyTorch's graph has no exact place for "
        "them; their ranges are those of calibration: %s",
        *(len(names), len(plan.groups), shorten(names)),
    )


def _key(group: str) -> str:
    """A group's name as that of a submodule, which may hold no dot."""
    return group.replace(".", "_")


def _insert(
    seen: Seen, placement: Placement, plan: QuantPlan, learn: bool | None, device: torch.device
) -> FakeQuantizers:
    """Write fake quantization into the trace; the quantizers by name."""
    groups = {_key(place.group.name): place for place in reversed(placement.places)}
    quantizers = FakeQuantizers({key: _quantizer(place, plan, learn) for key, place in groups.items()})
    seen.trace.add_module(FAKE_QUANTIZERS, quantizers.to(device))
    graph = seen.trace.graph
    folded = {p.reader: fold(graph, p.reader, p.norm) for p in placement.places if p.norm is not None}
    for place in placement.places:
        source = folded[place.reader] if place.norm is not None else place.source
        _quantize_edge(graph, source, place)
    return quantizers


def _quantizer(place: TraceSite, plan: QuantPlan, learn: bool | None) -> FakeQuantize:
    spec, group = place.spec, place.group
    few = spec.dtype.bitwidth - spec.reduce_bits < MANY_BITS
    return FakeQuantize(
        spec,
        _turned(plan.params[group.name], place.turned),
        constant=group.constant,
        learned=few if learn is None else learn,
        fixed=group.fixed is not None,
        bounds=group.bounds,
    )


def _quantize_edge(graph: fx.Graph, source: fx.Node, place: TraceSite) -> None:
    """Let the reader read ``source`` through the quantizer, which stands once behind each source."""
    target = f"{FAKE_QUANTIZERS}.{_key(place.group.name)}"
    known = (user for user in source.users if user.op == "call_module" and user.target == target)
    node = next(known, None)
    if node is None:
        with graph.inserting_after(source):
            node = graph.call_module(target, (source, place.observed))
    place.reader.replace_input_with(source, node)


def _turned(params: QuantParams, turned: bool) -> QuantParams:
    """Scales of blocks have the shape of their matrix, and are transposed with it."""
    if not turned or params.scale.ndim != 2:
        return params
    return QuantParams(params.scale.T.copy(), params.zero_point.T.copy())


# --- behind training ----------------------------------------------------------------------------------


def _check_types(state: Mapping[str, torch.Tensor], recipe: Recipe) -> None:
    """What was cast since it was prepared is no longer what was exported."""
    for name, dtype in recipe.types.items():
        if name in state and state[name].dtype != dtype:
            raise ModelError(
                f"{name!r} is {state[name].dtype}, was {dtype} when the module was prepared: give it back "
                "that type, as with .float()"
            )


def _moved(call: Call, state: Mapping[str, torch.Tensor]) -> Call:
    """``call`` on the device that the module is on now."""
    device = next(iter(state.values())).device
    return call.map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf)


def _learned(module: nn.Module, recipe: Recipe) -> dict[str, QuantParams]:
    """Scale and zero point of every group that training saw."""
    quantizers = module.get_submodule(FAKE_QUANTIZERS)
    found = {}
    for group, (key, turned) in recipe.quantizers.items():
        quantizer = quantizers.get_submodule(key)
        assert isinstance(quantizer, FakeQuantize)
        found[group] = _turned(quantizer.params, turned)
        if not np.isfinite(found[group].scale).all():
            raise ModelError(f"training made the scale of {group!r} NaN or infinite: lower the learning rate")
    return found


def _calibrated_params(recipe: Recipe, group: Group) -> QuantParams:
    if group.name not in recipe.params:
        raise ModelError(
            f"training changed what is quantized: {group.name!r} is new. Prepare the module again."
        )
    return recipe.params[group.name]


def _check(
    trial: StaticAcceptance,
    feeds: dict[str, Array],
    expected: list[Array],
    found: list[tuple[float, float | None]],
    draft: Path,
) -> None:
    """Does the file load, is it legal, and what does it give for the example inputs?"""
    trial.run(draft)
    given = open_session(draft, optimize=False).run(None, feeds)
    found.append(_closeness(expected, given))


def _closeness(expected: Sequence[Array], given: Sequence[Array]) -> tuple[float, float | None]:
    """SQNR in dB and agreement, of the worst output each."""
    pairs = list(zip(expected, given, strict=True))
    ratios = [sqnr(one, other) for one, other in pairs if one.dtype.kind == "f"]
    axes = [(one, other, axis) for one, other in pairs if (axis := class_axis(one)) is not None]
    shares = [float((one.argmax(axis) == other.argmax(axis)).mean()) for one, other, axis in axes]
    return min(ratios, default=float("inf")), min(shares, default=None)


def _warnings(ratio: float) -> Iterator[str]:
    if ratio < POOR:
        yield (
            f"the file gives other outputs than the module that was trained: SQNR {ratio:.1f} dB, expected "
            f"{POOR:.0f}. Its accuracy may be another one: evaluate the file itself."
        )
