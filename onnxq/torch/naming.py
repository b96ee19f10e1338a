"""Name the nodes of an exported model after the modules that they come from.

``layer1.0.conv2/Conv`` is a Conv of the module ``layer1.0.conv2``. Nodes of the outermost forward() have only
the operator's name. So patterns (``--exclude 'layer1.0.conv2/*'``), plans, reports and rankings use the names
of the PyTorch model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxq.core.errors import ConfigError
from onnxq.graph.nodes import name_of
from onnxq.graph.passes.names import UniqueNamesPass

_SCOPES, _CLASSES, _TRACE = (
    "pkg.torch.onnx.name_scopes",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.onnx.stack_trace",
)
_AGAIN = re.compile(r"@\d+")
"""The suffix that torch.export appends to a module's name when it is called again."""


def name_nodes(model: ir.Model, modules: Collection[str]) -> None:
    """Name every node after its module; ``modules`` are the names of all modules.

    A convolution with a folded BatchNorm is named after the convolution, though the exporter assigns it to
    the BatchNorm.
    """
    for node in model.graph.all_nodes():
        module = _module(node, modules)
        if module is not None:
            node.name = f"{module}/{node.op_type}" if module else node.op_type
        node.metadata_props.pop(_TRACE, None)  # holds paths of the machine that exported
    UniqueNamesPass()(model)


def _module(node: ir.Node, modules: Collection[str]) -> str | None:
    """The name of the module that ``node`` comes from; None if it is unknown."""
    scopes = _listed(node, _SCOPES)
    if not scopes:
        return None
    classes = _listed(node, _CLASSES)
    if len(classes) > 1 and "batchnorm" in classes[-2].lower() and node.op_type != "BatchNormalization":
        owners = (_owner(value) for value in node.inputs)
        return next((owner for owner in owners if owner in modules), scopes[-2])
    name = _AGAIN.sub("", scopes[-2]) if len(scopes) > 1 else ""
    return name if name in modules else ""  # the exporter invents some scopes


def _listed(node: ir.Node, key: str) -> Sequence[str]:
    return [str(part) for part in ast.literal_eval(node.metadata_props.get(key, "[]"))]


def _owner(value: ir.Value | None) -> str | None:
    """The module that the parameter ``value`` belongs to, according to its name."""
    if value is None or not value.is_initializer():
        return None
    return name_of(value).rpartition(".")[0]


def name_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str | None]) -> None:
    """Name the inputs and outputs, and rename tensors inside the graph that have such a name.

    ONNX Runtime refuses a model in which two tensors have the same name. Neither PyTorch's exporter nor the
    checker of onnx prevents that an output has the name of a tensor inside.

    Args:
        model: the model, which is changed.
        inputs: the names of the inputs.
        outputs: the names of the outputs; None keeps the exporter's name.

    Raises:
        ConfigError: a name is given twice, or too few or too many are given.
    """
    graph = model.graph
    for kind, values, names in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        if len(values) != len(names):
            raise ConfigError(f"{len(names)} {kind} names for {len(values)} {kind}s")
        for value, name in zip(values, names, strict=True):
            value.name = name or value.name
    _check_unique([name_of(value) for value in graph.inputs], "input")
    given = [name for name in outputs if name]
    _check_unique(given, "output")
    if clash := set(given) & set(inputs):
        raise ConfigError(
            f"output name {min(clash)!r} is also the name of an input: give another one (output_names)"
        )
    UniqueNamesPass()(model)


def name_axes(model: ir.Model, shapes: Any) -> None:
    """Name the axes that vary as in ``shapes``, which `torch.export` got: ``batch`` instead of ``s77``."""
    given = shapes.values() if isinstance(shapes, Mapping) else shapes or ()
    names: dict[str, str] = {}
    for value, axes in zip(model.graph.inputs, given, strict=False):
        for axis, dim in axes.items() if isinstance(axes, Mapping) else ():
            symbol = value.shape[axis] if value.shape is not None and isinstance(axis, int) else None
            name = dim if isinstance(dim, str) else getattr(dim, "__name__", None)
            if isinstance(symbol, ir.SymbolicDim) and symbol.value and name:
                names.setdefault(symbol.value, name)
    for value in _values(model) if names else ():
        _rename_axes(value, names)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    yield from model.graph.inputs
    for node in model.graph.all_nodes():
        yield from node.outputs


def _rename_axes(value: ir.Value, names: Mapping[str, str]) -> None:
    if value.shape is None or value.shape.is_static():
        return
    dims = (dim.value if isinstance(dim, ir.SymbolicDim) else dim for dim in value.shape)
    value.shape = ir.Shape(_renamed(dim, names) if isinstance(dim, str) else dim for dim in dims)


def _renamed(dim: str, names: Mapping[str, str]) -> str:
    """Rename the symbols in a symbol or a formula of symbols."""
    return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim)


def _check_unique(names: Sequence[str], kind: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{kind} name {twice[0]!r} is given twice")
