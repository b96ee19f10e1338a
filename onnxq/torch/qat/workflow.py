"""Quantization-aware training: `prepare_qat` before training, `convert_qat` after it.

One plan, made for the exported model, decides where fake quantization is placed in training and where Q and
DQ are placed in the file. So the trained and the written quantization are the same. Post-training
quantization uses the same plan.
"""

from __future__ import annotations

import copy
import logging
import math
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
from calibrators.held_noise import noisy_outputs
from calibrators.session import open_session
from onnxq.algorithms.float32_nodes import chosen_remainder
from onnxq.calibration.qparams import calibrator, compute_qparams, from_statistics
from onnxq.calibration.run import gather
from onnxq.calibration.sample_split import Data, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError, TargetError
from onnxq.core.plan import Group, QuantParams, QuantPlan
from onnxq.core.progress import silent
from onnxq.core.unused import TRAINING, refuse
from onnxq.graph.files import write_validated
from onnxq.graph.nodes import name_of
from onnxq.graph.qdq.insert_qdq import as_written
from onnxq.pipelines.acceptance import accept, verify_static
from onnxq.pipelines.preflight import as_onnxq_errors, check_written
from onnxq.pipelines.prepare import prepare_loaded
from onnxq.targets.lookup import get_target
from onnxq.torch.batches import batches_for
from onnxq.torch.calls import Call, Example, example_call, to_numpy
from onnxq.torch.exporting import evaluating
from onnxq.torch.float_check import check_float
from onnxq.torch.module_patterns import Layers, Which
from onnxq.torch.qat.batchnorm import fold
from onnxq.torch.qat.capture import Seen, capture
from onnxq.torch.qat.fake_quantize import FakeQuantize
from onnxq.torch.qat.module import (
    FAKE_QUANTIZERS,
    FakeQuantizers,
    Recipe,
    assemble,
    prepared,
    recipe_of,
)
from onnxq.torch.qat.placement import Placement, TraceSite, find_places
from onnxq.torch.tracing import quiet
from onnxq.verify.accuracy import AccuracyEvaluator, outcome
from onnxq.verify.outputs.output_kinds import OutputKind
from onnxq.verify.verdict import Verdict

logger = logging.getLogger(__name__)

MANY_BITS = 8
"""By default, scales of grids with fewer bits are learned."""

POOR = 30.0
"""SQNR in dB between the file and the module; below, a warning is given."""


@dataclass(frozen=True)
class QatResult:
    """The result of `convert_qat`.

    Attributes:
        path: the file.
        plan: every quantized edge with its parameters.
        sqnr: SQNR of the file's outputs, without a runtime's optimizations, against the fake-quantized
            module's, on the example inputs, in dB; worst output.
        agreement: the share (0 … 1) of equal decisions between them; None if there are no decisions.
        verdicts: the results of the checks with the target's rules and runtimes.
        warnings: warnings about the result.
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
    skip: Iterable[Which] = (),
    layers: Mapping[Which, Mapping[str, Any]] | None = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> nn.Module:
    """Make a copy of ``module`` that trains with fake quantization as the target needs it.

    The copy is an instance of the same class, with the same parameters, buffers, submodules, methods and
    modes (``train()``, ``eval()``), and an additional child ``fake_quantizers``. Train it as usual.

    Args:
        module: any module that `torch.export` takes, on any device; it is not changed. Parts that
            `onnxq.torch.skip_quant` marked are kept in float.
        example_inputs: the arguments of ``forward``: a tensor, a tuple, or a dictionary by name.
        target: the deployment target; None: that of ``config``.
        config: the options; those of calibration choose the initial ranges.
        data: batches to calibrate on, as ``forward`` or `quantize_static` takes them; labels beside the
            inputs are ignored. None: ``config.data``, or else the example inputs.
        learn_scales: whether scales are parameters (LSQ); None: only those of grids with less than 8 bits.
        skip: layers to keep in float, by name, glob of names, or type, besides the marked ones.
        layers: other options for some layers, as for `onnxq.torch.PTQ`.
        input_names: names for the ONNX model's inputs.
        output_names: names for its outputs.

    Raises:
        OnnxqError: the target is unknown or needs FP8, the module cannot be exported or has nothing to
            quantize, or the data does not fit.
    """
    options = _options(config, target, data)
    check_float(module)
    ours = copy.deepcopy(module)
    call = example_call(ours, example_inputs)
    with evaluating(ours):
        seen = capture(ours, call, input_names, output_names)
    options = Layers(tuple(skip), dict(layers or {})).added_to(options, module, seen.onnx)
    simple, plan = prepare_loaded(seen.onnx, type(module).__name__, options)
    data = options.data if data is None else data
    batches = [_sample(simple, call)] if data is None else batches_for(ours, call, _names(simple), data)
    if any(group.spec.is_floating for group in plan.groups.values()):
        raise TargetError(f"target {plan.target} quantizes to FP8, which training does not simulate")
    plan = _calibrated(simple, plan, batches, options)
    placement = find_places(plan, simple, seen)
    _tell(placement, plan)
    quantizers = _insert(seen, placement, plan, learn_scales, call.tensors[0].device)
    quantizers.train(ours.training)
    recipe = {
        "captured": seen.captured,
        "config": options,
        "params": plan.params,
        "quantizers": {p.group.name: (_key(p.group.name), p.layout) for p in placement.places},
        "call": call,
        "types": {name: tensor.dtype for name, tensor in _state(ours).items()},
    }
    with quiet():
        return assemble(ours, seen.trace, quantizers, recipe)


def convert_qat(module: nn.Module, path: str | os.PathLike[str]) -> QatResult:
    """Write a trained module as a Q/DQ model and check it; an error leaves ``path`` unchanged.

    Args:
        module: the module that `prepare_qat` returned, trained; it may be wrapped (DistributedDataParallel).
        path: the file to write.

    Raises:
        OnnxqError: the module was not prepared, holds NaN, or the file cannot be written or run.
    """
    inner = prepared(module)
    recipe = recipe_of(inner)
    check_written([Path(path)], None, None, recipe.config)
    state = _state(inner)
    _check_types(state, recipe)
    with evaluating(inner), quiet():
        outputs = [to_numpy(tensor, "") for tensor in _moved(recipe.call, state).outputs(inner)]
    simple, plan = prepare_loaded(recipe.captured.onnx(state), type(inner).__name__, recipe.config)
    plan = compute_qparams(simple, plan, partial(_calibrated_params, recipe), _learned(inner, recipe))
    feeds = _sample(simple, recipe.call)
    example = [Sample("example inputs", feeds)]
    noisy = noisy_outputs(simple)
    with as_onnxq_errors():
        evaluator = AccuracyEvaluator(simple, example)
        expected = {n: a for n, a in zip(evaluator.kinds, outputs, strict=True) if n not in noisy}
        compared = partial(_compared, feeds=feeds, expected=expected, kinds=evaluator.kinds)
        verify = partial(verify_static, plan=plan, config=recipe.config, evaluator=evaluator)
        check = partial(accept, evaluator=evaluator, verify=verify)
        accepted, ratio, agreement = write_validated(
            as_written(simple, plan, chosen_remainder(simple, plan, example, recipe.config)),
            path,
            lambda draft: (check(draft), *compared(draft)),
        )
    warnings = tuple(_warnings(ratio))
    for text in warnings:
        logger.warning("%s", text)
    return QatResult(os.fspath(path), plan, ratio, agreement, accepted.verdicts, warnings)


def _state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Collect parameters and buffers, under every name that they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


# --- before training ----------------------------------------------------------------------------------


def _options(config: QuantConfig | None, target: str | None, data: Data | None) -> QuantConfig:
    """Choose the target, and refuse what is wrong before the work begins."""
    options = config or QuantConfig()
    options = options if target is None else options.model_copy(update={"target": target})
    if options.save_statistics is not None:
        check_written([options.save_statistics], None, data, options)
    refuse(options, TRAINING, "quantization-aware training takes no {}: leave them out, or use PTQ")
    get_target(options.target)  # a wrong name raises here
    if options.float_type is None:  # it computes what was trained; `onnxq convert` changes the rest
        options = options.model_copy(update={"float_type": "float32"})
    return options


def _names(simple: ir.Model) -> list[str]:
    return [name_of(value) for value in simple.graph.inputs if not value.is_initializer()]


def _sample(simple: ir.Model, call: Call) -> dict[str, Array]:
    return {name: to_numpy(tensor, name) for name, tensor in zip(_names(simple), call.tensors, strict=True)}


def _calibrated(simple: ir.Model, plan: QuantPlan, data: Data, config: QuantConfig) -> QuantPlan:
    with as_onnxq_errors():
        samples = replace(open_samples(simple, data, config), holds=False)
        statistics = gather(simple, dict.fromkeys(plan.observed), samples, config, silent)
    return compute_qparams(simple, plan, from_statistics(statistics, calibrator(config)))


def _tell(placement: Placement, plan: QuantPlan) -> None:
    if not placement.unplaced:
        return
    names = placement.unplaced
    logger.warning(
        "%d of %d quantized tensors are in float in training, because PyTorch's graph has no exact place for "
        "them; they keep their ranges from calibration: %s",
        *(len(names), len(plan.groups), shorten(names)),
    )


def _key(group: str) -> str:
    """Convert the name of a group to that of a submodule, which must not contain dots."""
    return group.replace(".", "_")


def _insert(
    seen: Seen, placement: Placement, plan: QuantPlan, learn: bool | None, device: torch.device
) -> FakeQuantizers:
    """Write fake quantization into the trace, and return the quantizers by name."""
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
        place.layout.params_in_torch(plan.params[group.name]),
        constant=group.constant,
        learned=few if learn is None else learn,
        fixed=group.fixed is not None,
        bounds=group.bounds,
    )


def _quantize_edge(graph: fx.Graph, source: fx.Node, place: TraceSite) -> None:
    """Let the reader read ``source`` through its quantizer, which is called only once per source."""
    target = f"{FAKE_QUANTIZERS}.{_key(place.group.name)}"
    known = (user for user in source.users if user.op == "call_module" and user.target == target)
    node = next(known, None)
    if node is None:
        with graph.inserting_after(source):
            node = graph.call_module(target, (source, place.observed))
    place.reader.replace_input_with(source, node)


# --- after training -----------------------------------------------------------------------------------


def _check_types(state: Mapping[str, torch.Tensor], recipe: Recipe) -> None:
    """Refuse a module that was cast to another type since it was prepared and exported."""
    for name, dtype in recipe.types.items():
        if name in state and state[name].dtype != dtype:
            raise ModelError(
                f"{name!r} is {state[name].dtype}, but was {dtype} when the module was prepared: convert it "
                "back, for example with .float()"
            )


def _moved(call: Call, state: Mapping[str, torch.Tensor]) -> Call:
    """Move ``call`` to the device that the module is on now."""
    device = next(iter(state.values())).device
    return call.map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf)


def _learned(module: nn.Module, recipe: Recipe) -> dict[str, QuantParams]:
    """Collect scale and zero point of every group with a fake quantizer."""
    quantizers = module.get_submodule(FAKE_QUANTIZERS)
    found = {}
    for group, (key, layout) in recipe.quantizers.items():
        quantizer = quantizers.get_submodule(key)
        assert isinstance(quantizer, FakeQuantize)
        found[group] = layout.params_in_onnx(quantizer.params)
        if not np.isfinite(found[group].scale).all():
            raise ModelError(f"training made the scale of {group!r} NaN or infinite: lower the learning rate")
    return found


def _calibrated_params(recipe: Recipe, group: Group) -> QuantParams:
    if group.name not in recipe.params:
        raise ModelError(
            f"training changed the quantized tensors: {group.name!r} is new. Prepare the module again."
        )
    return recipe.params[group.name]


def _compared(
    draft: Path, feeds: dict[str, Array], expected: Mapping[str, Array], kinds: Mapping[str, OutputKind]
) -> tuple[float, float | None]:
    """SQNR in dB and agreement of the file's outputs for the example inputs, each of the worst output.

    Only the ``expected`` outputs count.
    """
    given = dict(zip(kinds, open_session(draft, optimize=False).run(None, feeds), strict=True))
    pair = list(expected.values()), [given[name] for name in expected]
    quality = outcome({name: kinds[name] for name in expected}, [pair], 1)
    return math.inf if math.isnan(quality.sqnr) else quality.sqnr, quality.agreement


def _warnings(ratio: float) -> Iterator[str]:
    if ratio < POOR:
        yield (
            f"the file gives other outputs than the trained module: SQNR {ratio:.1f} dB, expected at least "
            f"{POOR:.0f}. Its accuracy may differ from the module's: evaluate the file itself."
        )
