"""Use a target's plan in PyTorch's own quantization flow, PT2E, as a `Quantizer` of torchao.

For users of that flow::

    prepared = prepare_pt2e(torch.export.export(module, example).module(), quantizer("tensorrt", example))
    ...  # calibrate; or prepare_qat_pt2e, and train
    torch.onnx.export(convert_pt2e(prepared), example, "model.onnx", dynamo=True)
    # then: onnxq requantize model.onnx out.onnx --target tensorrt

It annotates the same edges that `onnxq.quantize_static` would quantize. Each group of the plan has one
observer, which belongs to its first edge and is shared by all others.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import fx
from torchao.quantization.pt2e import (
    FusedMovingAvgObsFakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
    move_exported_model_to_eval,
)
from torchao.quantization.pt2e.quantizer import (
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ModelError, TargetError
from onnxq.core.numerics import params_from_range
from onnxq.core.plan import Group, QuantSpec
from onnxq.core.unused import PT2E, refuse
from onnxq.pipelines.prepare import prepare_loaded
from onnxq.torch.calls import Example, example_call
from onnxq.torch.module_patterns import Layers
from onnxq.torch.qat.capture import Seen, capture
from onnxq.torch.qat.placement import TraceSite, find_places
from onnxq.torch.tracing import quiet

ANNOTATION = "quantization_annotation"
"""The key of torchao's annotations in the ``meta`` of nodes."""

_TYPES: Mapping[ir.DataType, torch.dtype] = {ir.DataType.INT8: torch.int8, ir.DataType.UINT8: torch.uint8}


def quantizer(
    target: str, example_inputs: Example, config: QuantConfig | None = None, *, training: bool = False
) -> Quantizer:
    """Make a `Quantizer` for `prepare_pt2e` or `prepare_qat_pt2e`.

    Args:
        target: the deployment target.
        example_inputs: example inputs of the exported module.
        config: the options for what is quantized; torchao's observers choose the ranges.
        training: whether it is for `prepare_qat_pt2e`.

    Raises:
        ConfigError: an option would choose ranges.
        TargetError: there is no such target.
    """
    options = (config or QuantConfig()).model_copy(update={"target": target})
    refuse(options, PT2E, "torchao's observers choose ranges, so the quantizer takes no {}: leave them out")
    return PlanQuantizer(options, example_inputs, training)


class PlanQuantizer(Quantizer):  # type: ignore[misc]
    """The `Quantizer` that `quantizer` makes."""

    def __init__(self, config: QuantConfig, example_inputs: Example, training: bool) -> None:
        super().__init__()
        self._config, self._example, self._training = config, example_inputs, training

    def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
        """Annotate every node of ``model`` with the inputs that are quantized, and how.

        Raises:
            OnnxqError: the module cannot be exported or has nothing to quantize, or torchao does not have the
                target's number formats.
        """
        seen = _seen(model, self._example)
        config = Layers().added_to(self._config, model, seen.onnx)
        simple, plan = prepare_loaded(seen.onnx, "the exported module", config)
        placement = find_places(plan, simple, seen)
        if placement.unplaced:
            raise ModelError(f"PyTorch's graph has no exact place for {', '.join(placement.unplaced)}")
        ours = _likeness(seen.trace.graph, model.graph)
        first: dict[str, tuple[fx.Node, fx.Node]] = {}
        for place in placement.places:
            edge = ours[place.source], ours[place.reader]
            known = first.setdefault(place.group.name, edge)
            spec = self._spec(place) if known is edge else SharedQuantizationSpec(known)
            _annotate(*edge, spec)
        return model

    def validate(self, model: fx.GraphModule) -> None:
        """Accept the model: the plan is right by construction."""

    def _spec(self, place: TraceSite) -> QuantizationSpecBase:
        spec, dtype = place.spec, _TYPES.get(place.spec.dtype)
        if dtype is None or spec.power_of_two or spec.block_size is not None:
            raise TargetError(
                f"torchao does not have the number format of {place.tensor!r} on {self._config.target}"
            )
        if place.group.fixed is not None:
            return _fixed(place.group, dtype)
        low, high = spec.limits
        return QuantizationSpec(dtype, self._observer(place), low, high, _scheme(spec), spec.axis)

    def _observer(self, place: TraceSite) -> Any:
        whole = place.spec.axis is None
        if self._training:
            moving = MovingAverageMinMaxObserver if whole else MovingAveragePerChannelMinMaxObserver
            return FusedMovingAvgObsFakeQuantize.with_args(observer=moving)
        constant = MinMaxObserver if whole else PerChannelMinMaxObserver
        return constant if place.group.constant else HistogramObserver


def _seen(model: fx.GraphModule, example: Example) -> Seen:
    """Trace ``model`` in inference mode and export it to ONNX."""
    still = copy.deepcopy(model)
    with quiet():
        move_exported_model_to_eval(still)
        return capture(still, example_call(still, example))


def _likeness(trace: fx.Graph, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map the nodes of ``trace`` to those of ``graph``, which it was traced from, from the outputs up."""
    found: dict[fx.Node, fx.Node] = {}
    pairs = [(trace.output_node(), graph.output_node())]
    while pairs:
        one, other = pairs.pop()
        if one in found:
            continue
        inputs = one.all_input_nodes, other.all_input_nodes
        if one.op != other.op or len(inputs[0]) != len(inputs[1]) or not _alike(one, other):
            raise ModelError(f"{other.name!r} is another operator when the module is traced again")
        found[one] = other
        pairs += zip(*inputs, strict=True)
    return found


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Whether both are the same operator; placeholders may have other names."""
    return one.op == "placeholder" or one.target == other.target


def _annotate(source: fx.Node, reader: fx.Node, spec: QuantizationSpecBase) -> None:
    """Annotate that ``reader`` reads ``source`` quantized; for graph outputs, annotate ``source`` instead."""
    last = reader.op == "output"
    node = source if last else reader
    annotation = node.meta.setdefault(ANNOTATION, QuantizationAnnotation(_annotated=True))
    if last:
        annotation.output_qspec = spec
    else:
        annotation.input_qspec_map[source] = spec


def _fixed(group: Group, dtype: torch.dtype) -> FixedQParamsQuantizationSpec:
    assert group.fixed is not None
    params = params_from_range(*group.fixed, group.spec)
    low, high = group.spec.limits
    return FixedQParamsQuantizationSpec(
        dtype, float(params.scale), int(params.zero_point), low, high, _scheme(group.spec)
    )


def _scheme(spec: QuantSpec) -> torch.qscheme:
    if spec.axis is None:
        return torch.per_tensor_symmetric if spec.symmetric else torch.per_tensor_affine
    return torch.per_channel_symmetric if spec.symmetric else torch.per_channel_affine
