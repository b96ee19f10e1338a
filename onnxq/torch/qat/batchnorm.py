"""Fold batch normalization into the weights before it, while both are trained.

    f = gamma / sqrt(running_var + eps)
    y = norm(layer(x, quantized(w * f)) / f + b)

The weights are rounded as they will be in the folded model. The normalization still gets the same input as
without folding, so it keeps using the statistics of the batch: Jacob et al. 2018,
https://arxiv.org/abs/1712.05877, section 3.2. In inference mode, this equals the folded layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten

_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


def fold(graph: fx.Graph, layer: fx.Node, norm: fx.Node) -> fx.Node:
    """Write the folding of ``norm`` into ``layer`` into ``graph``.

    Args:
        graph: the trace, which is changed.
        layer: the layer before the normalization.
        norm: the normalization.

    Returns:
        The node that computes the folded weights.
    """
    weight, bias = argument(layer, "weight"), argument(layer, "bias")
    with graph.inserting_before(layer):
        gained = graph.call_function(
            factor, (*(argument(norm, n) for n in ("weight", "running_var", "eps")),)
        )
        folded = graph.call_function(scaled, (weight, gained, *_channels(layer)))
    layer.replace_input_with(weight, folded)
    if bias is not None:
        _set_argument(layer, "bias", None)
    with graph.inserting_after(layer):
        plain = graph.call_function(unscaled, (layer, gained, bias))
    norm.replace_input_with(layer, plain)
    return folded


def factor(gamma: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """Compute the factor of each channel: [C].

    Args:
        gamma: the weight of the normalization, [C]; None: 1.
        variance: its running variance, [C].
        epsilon: its eps.
    """
    inverse = torch.rsqrt(variance + epsilon)
    return inverse if gamma is None else gamma * inverse


def scaled(weight: Tensor, gained: Tensor, axis: int, groups: int) -> Tensor:
    """Multiply ``weight`` by a factor for each output channel.

    Args:
        weight: the weights of a layer.
        gained: the factors, [C].
        axis: the axis of output channels: 0, or 1 within each group (transposed convolutions).
        groups: the number of groups, for axis 1.
    """
    if axis == 0:
        return weight * gained.reshape(-1, *[1] * (weight.ndim - 1))
    split = weight.reshape(groups, -1, *weight.shape[1:])
    return (split * gained.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def unscaled(output: Tensor, gained: Tensor, bias: Tensor | None) -> Tensor:
    """Divide ``output`` by the factor of each channel again and add the bias; dead channels stay 0.

    Args:
        output: the output of the layer, with channels along axis 1.
        gained: the factors, [C].
        bias: the bias of the layer, [C], or None.
    """
    shape = (-1, *[1] * (output.ndim - 2))
    plain = output / torch.where(gained == 0, 1.0, gained).reshape(shape)
    return plain if bias is None else plain + bias.reshape(shape)


def folded_weight(weight: Tensor, layer: fx.Node, norm: fx.Node, trace: fx.GraphModule) -> Tensor:
    """Compute the initial weights of ``layer`` with ``norm`` folded into them.

    Args:
        weight: the weights without folding.
        layer: the layer.
        norm: the normalization after it.
        trace: the trace that holds both.
    """
    names = ("weight", "running_var", "eps")
    values = [_value(argument(norm, name), trace) for name in names]
    return scaled(weight, factor(*values), *_channels(layer)).detach()


def constant_of(node: fx.Node, trace: fx.GraphModule) -> Tensor | None:
    """Compute the tensor that ``node`` gives; None if it depends on more than parameters and constants."""
    if node.op == "get_attr":
        value = _fetch(trace, str(node.target))
        return value.detach() if isinstance(value, Tensor) else None
    if node.op != "call_function" or not node.all_input_nodes:
        return None
    known = {source: constant_of(source, trace) for source in node.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args: Any = fx.map_arg(node.args, known.__getitem__)
    kwargs: Any = fx.map_arg(dict(node.kwargs), known.__getitem__)
    result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result if isinstance(result, Tensor) else None


def argument(node: fx.Node, name: str) -> Any:
    """The argument of an operator with this name, or its default."""
    for index, declared in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if declared.name == name:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(name, declared.default_value)
            )
    raise KeyError(name)


def _set_argument(node: fx.Node, name: str, value: Any) -> None:
    names = [declared.name for declared in node.target._schema.arguments]  # type: ignore[union-attr]
    if names.index(name) < len(node.args):
        node.update_arg(names.index(name), value)
    else:
        node.update_kwarg(name, value)


def _channels(layer: fx.Node) -> tuple[int, int]:
    """The axis of the weights that counts the output channels of a group, and the number of groups."""
    return (1, argument(layer, "groups")) if layer.target in _TRANSPOSED else (0, 1)


def _value(argument: Any, trace: fx.GraphModule) -> Any:
    return constant_of(argument, trace) if isinstance(argument, fx.Node) else argument


def _fetch(module: torch.nn.Module, path: str) -> Any:
    value: Any = module
    for name in path.split("."):
        value = getattr(value, name)
    return value
