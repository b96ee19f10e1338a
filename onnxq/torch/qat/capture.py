"""Capture a module as a PyTorch trace and as an ONNX model, and match the nodes of both.

The module is traced once. Fake quantization is placed in the trainable form of the trace. The plan is made
for the ONNX model that the exporter makes of it. The exporter keeps the names of parameters. It writes into
each ONNX node the name of the traced node that it came from, and names the node's outputs after it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from onnxq.core.errors import ModelError
from onnxq.graph.nodes import name_of
from onnxq.torch.calls import Call
from onnxq.torch.calls import output_names as names_in
from onnxq.torch.faithful import check_norms
from onnxq.torch.naming import name_interface, name_nodes
from onnxq.torch.tracing import Traced, quiet, root, trace_free

logger = logging.getLogger(__name__)

NOTHING: Mapping[str, torch.Tensor] = MappingProxyType({})

_FX_NODE = "pkg.torch.onnx.fx_node"
_NAME = re.compile(r"%(\w+)")


@dataclass(frozen=True)
class Captured:
    """The exported model before the exporter's cleaning: every parameter is an initializer under its name.

    Attributes:
        raw: that model.
        program: the graph that it was exported from.
        modules: the names of the user's submodules.
        inputs: the names of the inputs.
        outputs: the names of the outputs; None keeps the exporter's name.
        fixed_batch: the only batch size that the module takes; None: any.
    """

    raw: ir.Model
    program: ExportedProgram
    modules: frozenset[str]
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]
    fixed_batch: int | None = None

    def onnx(self, state: Mapping[str, torch.Tensor] = NOTHING) -> ir.Model:
        """Make the model as `onnxq.torch.export` does, with the parameters in ``state``, by name.

        Raises:
            ModelError: a tensor of ``state`` has another shape than the initializer of its name.
        """
        program = torch.onnx.ONNXProgram(_with_weights(self.raw, state), self.program)
        with quiet():
            program.optimize()
        name_nodes(program.model, self.modules)
        name_interface(program.model, self.inputs, self.outputs)
        return program.model


@dataclass(frozen=True)
class Seen:
    """A trace and the matching ONNX model.

    Attributes:
        trace: the trainable graph, in inference mode.
        captured: the exported model.
        onnx: the exported model, cleaned.
        values: tensor of ``onnx`` -> the node of ``trace`` that computes it.
        nodes: node of ``onnx`` -> the node of ``trace`` that it came from.
    """

    trace: fx.GraphModule
    captured: Captured
    onnx: ir.Model
    values: Mapping[str, fx.Node]
    nodes: Mapping[str, fx.Node]


def capture(
    module: torch.nn.Module,
    call: Call,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Seen:
    """Trace ``module`` and export it. The trace shares the module's parameters.

    Args:
        module: the module, in eval mode.
        call: an example call.
        input_names: other names for the inputs.
        output_names: other names for the outputs.

    Raises:
        ModelError: PyTorch cannot trace or export it, or a BatchNorm has no statistics to fold.
    """
    check_norms(module)
    traced = _traced(module, call)
    program = traced.program
    with quiet(), torch.no_grad():
        exported = _exported(program, module)
        trace = program.module(check_guards=False)
        keys = names_in(module(*call.args, **call.kwargs))
    check_norms(module, program)
    assert isinstance(trace, fx.GraphModule)
    names = tuple(input_names or (node.name for node in _inputs(trace)))
    captured = Captured(
        exported.model,
        exported.exported_program,
        frozenset(name for name, _ in module.named_modules(remove_duplicate=False)),
        names,
        tuple(output_names or (f"{key}_out" if key in names else key for key in keys)),
        fixed_batch=call.batch if traced.reason else None,
    )
    return _matched(trace, captured)


def _matched(trace: fx.GraphModule, captured: Captured) -> Seen:
    """Match the nodes of ``trace`` with those of the ONNX model."""
    came_from = _origins(captured.program.graph, {node.name: node for node in trace.graph.nodes})
    model = captured.onnx()
    nodes = {name_of(node): came_from[name] for node in model.graph if (name := _fx_name(node)) in came_from}
    values = {
        name_of(value): came_from[value.name]
        for node in model.graph
        for value in node.outputs
        if value.name in came_from
    }
    values |= _named(model.graph.inputs, _inputs(trace))
    values |= _named(model.graph.outputs, [r for r in _results(trace) if isinstance(r, fx.Node)])
    return Seen(trace, captured, model, values, nodes)


def _named(values: Sequence[ir.Value], nodes: Sequence[fx.Node]) -> dict[str, fx.Node]:
    return {name_of(value): node for value, node in zip(values, nodes, strict=True)}


def _with_weights(model: ir.Model, state: Mapping[str, torch.Tensor]) -> ir.Model:
    """A copy of ``model`` whose initializers have the values of ``state``, by name."""
    result = model.clone()
    for name, value in result.graph.initializers.items():
        if name in state:
            array = np.array(state[name].detach().cpu().numpy())
            if value.shape is not None and tuple(value.shape.numpy()) != array.shape:
                raise ModelError(
                    f"parameter {name!r} has shape {array.shape}, but had {value.shape} when the module was "
                    "prepared: prepare it again"
                )
            value.const_value = ir.tensor(array, name=name)
    return result


def _traced(module: torch.nn.Module, call: Call) -> Traced:
    """Trace the module with a free batch size if it allows one, else with that of ``call``.

    Raises:
        ModelError: PyTorch cannot trace it.
    """
    traced = trace_free(module, call, Dim.AUTO, check=lambda _: None)
    if traced.reason:
        logger.warning(
            "%s is traced, and can be trained, with batches of %s only: %s",
            *(type(module).__name__, call.batch, traced.reason),
        )
    return traced


def _exported(program: ExportedProgram, module: torch.nn.Module) -> Any:
    try:
        return torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    except Exception as error:
        raise ModelError(f"{type(module).__name__} cannot be exported to ONNX: {root(error)}") from error


def _origins(graph: fx.Graph, traced: Mapping[str, fx.Node]) -> dict[str, fx.Node]:
    """Map nodes of the exported graph to the nodes of the trace that they came from."""
    found = {node.name: _origin(node, traced) for node in graph.nodes if node.op == "call_function"}
    return {name: node for name, node in found.items() if node is not None}


def _origin(node: fx.Node, traced: Mapping[str, fx.Node]) -> fx.Node | None:
    sources = node.meta.get("from_node")
    while sources:
        if sources[-1].name in traced:
            return traced[sources[-1].name]
        sources = sources[-1].from_node
    return traced.get(node.name)


def _fx_name(node: ir.Node) -> str | None:
    match = _NAME.match(node.metadata_props.get(_FX_NODE, ""))
    return match.group(1) if match else None


def _inputs(trace: fx.GraphModule) -> list[fx.Node]:
    """The inputs of the trace that are tensors."""
    nodes = trace.graph.find_nodes(op="placeholder")
    return [node for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]


def _results(trace: fx.GraphModule) -> list[Any]:
    """The outputs of the trace, containers unpacked."""
    return list(pytree.tree_leaves(trace.graph.output_node().args[0]))
