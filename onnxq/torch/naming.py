"""Names in an exported model: nodes are called after the modules that they come from.

``layer1.0.conv2/Conv`` is a Conv of the module ``layer1.0.conv2``; nodes of the outermost forward() have the
operator's name alone. So patterns (``--exclude 'layer1.0.conv2/*'``), plans, reports and rankings speak the
language of the PyTorch model.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnxq.core.errors import ConfigError
from onnxq.graph.passes.names import UniqueNamesPass

_SCOPES, _CLASSES, _TRACE = (
    "pkg.torch.onnx.name_scopes",
    "pkg.torch.onnx.class_hierarchy",
    "pkg.torch.onnx.stack_trace",
)
_AGAIN = re.compile(r"@\d+")
"""What torch.export appends to a module's name when it is called once more."""


def name_nodes(model: ir.Model, modules: Collection[str]) -> None:
    """Call every node after its module; ``modules`` are the names that there are.

    A convolution that took in a BatchNorm is named after the convolution: the exporter says it is the norm's.
    """
    for node in model.graph.all_nodes():
        module = _module(node, modules)
        if module is not None:
            node.name = f"{module}/{node.op_type}" if module else node.op_type
        node.metadata_props.pop(_TRACE, None)  # holds paths of the machine that exported
    UniqueNamesPass()(model)


def _module(node: ir.Node, modules: Collection[str]) -> str | None:
    """The name of the module that ``node`` comes from, None if nothing tells."""
    scopes = _listed(node, _SCOPES)
    if not scopes:
        return None
    classes = _listed(node, _CLASSES)
    if len(classes) > 1 and "batchnorm" in classes[-2].lower() and node.op_type != "BatchNormalization":
        owners = (_owner(value) for value in node.inputs)
        return next((owner for owner in owners if owner in modules), scopes[-2])
    name = _AGAIN.sub("", scopes[-2]) if len(scopes) > 1 else ""
    return name if name in modules else ""  # the exporter makes some scopes up


def _listed(node: ir.Node, key: str) -> Sequence[str]:
    return [str(part) for part in ast.literal_eval(node.metadata_props.get(key, "[]"))]


def _owner(value: ir.Value | None) -> str | None:
    """The module whose parameter ``value`` is, by its name."""
    if value is None or not value.is_initializer():
        return None
    return (value.name or "").rpartition(".")[0]


def name_interface(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str | None]) -> None:
    """Give inputs and outputs their names; whatever inside the graph has such a name gets another one.

    ONNX Runtime refuses a model in which two tensors have one name, and neither PyTorch's exporter nor
    onnx's checker sees to it that an output is not called like a tensor inside.

    Args:
        model: is changed.
        inputs: the names.
        outputs: the names; None keeps what the exporter chose.

    Raises:
        ConfigError: a name is given twice, or too few or too many are given.
    """
    graph = model.graph
    for kind, values, names in (("input", graph.inputs, inputs), ("output", graph.outputs, outputs)):
        if len(values) != len(names):
            raise ConfigError(f"{len(names)} {kind} names for {len(values)} {kind}s")
        for value, name in zip(values, names, strict=True):
            value.name = name or value.name
    _check_unique([value.name or "" for value in graph.inputs], "input")
    given = [name for name in outputs if name]
    _check_unique(given, "output")
    if clash := set(given) & set(inputs):
        raise ConfigError(
            f"output name {min(clash)!r} is the name of an input too: give another (output_names)"
        )
    UniqueNamesPass()(model)


def name_axes(model: ir.Model, shapes: Any) -> None:
    """Call the axes that vary as ``shapes`` does, which `torch.export` was given: ``batch``, not ``s77``."""
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
    """A symbol, or a formula of symbols, in new names."""
    return re.sub(r"\w+", lambda found: names.get(found[0], found[0]), dim)


def _check_unique(names: Sequence[str], kind: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{kind} name {twice[0]!r} is given twice")
