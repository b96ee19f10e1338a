"""Fuse a constant spatial Pad with the Conv, AveragePool or MaxPool that reads it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.graph.nodes import (
    all_nodes,
    constant_value,
    input_at,
    int_attribute,
    ints_attribute,
    is_op,
    rank,
    sole_output,
)
from onnxq.graph.walks import is_read, producer_of

NEVER_NEGATIVE = ("Relu", "Sigmoid", "Softmax", "HardSigmoid", "Abs")


class FusePadPass(ir.passes.InPlacePass):
    """Fuse a Pad with the Conv or pooling after it, where the result is exactly the same.

        conv(pad(x, p, 0), pads=q)           ->  conv(x, pads=p+q)
        average_pool(pad(x, p, 0), pads=q)   ->  average_pool(x, pads=p+q, count_include_pad=1)
        max_pool(pad(x, p, -inf), pads=q)    ->  max_pool(x, pads=p+q)

    A MaxPool pads with -inf: a Pad of 0 before it is the same only if no x is negative and every window
    sees at least one x. An AveragePool is not fused if it has padding of its own that it does not count, or
    rounds its output size up. A Pad with other readers stays for them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every Pad with every reader that can take it over."""
        fused = [_fuse(node) for node in list(all_nodes(model))]
        return ir.passes.PassResult(model, modified=any(fused))


def _fuse(node: ir.Node) -> bool:
    if not is_op(node, "Conv", "AveragePool", "MaxPool") or sole_output(node) is None:
        return False
    pad = producer_of(node.inputs[0])
    if pad is None or not is_op(pad, "Pad") or pad.inputs[0] is None:
        return False
    added, fill = _spatial_pads(pad), _fill_value(pad)
    if added is None or fill is None or not _own_pads_known(node, len(added)):
        return False
    own = ints_attribute(node, "pads", (0,) * len(added))
    if not _is_exact(node, pad.inputs[0], own, added, fill):
        return False
    _set_pads(node, [a + b for a, b in zip(own, added, strict=True)])
    node.replace_input_with(0, pad.inputs[0])
    if not is_read(pad.outputs[0]) and pad.graph is not None:
        pad.graph.remove(pad, safe=True)
    return True


def _set_pads(node: ir.Node, pads: list[int]) -> None:
    node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    node.attributes.pop("auto_pad", None)
    if node.op_type == "AveragePool":
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)


def _spatial_pads(pad: ir.Node) -> tuple[int, ...] | None:
    """Return begins, then ends, of the spatial pads; None if other axes are padded, or a pad is negative."""
    pads, axes = constant_value(input_at(pad, 1)), input_at(pad, 3)
    dims = rank(pad.inputs[0])
    if pads is None or "axes" in pad.attributes or (axes is not None and dims is None):
        return None
    count = pads.size // 2 if dims is None else dims
    full = np.zeros((2, count), np.int64)
    chosen = np.arange(count) if axes is None else constant_value(axes)
    if chosen is None or pads.size != 2 * chosen.size:
        return None
    full[:, chosen.astype(np.int64)] = pads.reshape(2, -1)
    if count < 3 or np.any(full[:, :2]) or np.any(full < 0):
        return None
    return tuple(int(p) for p in full[:, 2:].reshape(-1))


def _fill_value(pad: ir.Node) -> float | None:
    """Return the constant that is padded; None if the mode is another one or the value is not constant."""
    mode = pad.attributes.get("mode")
    if mode is not None and mode.as_string() != "constant":
        return None
    value = input_at(pad, 2)
    if value is None:
        return 0.0
    fill = constant_value(value)
    return None if fill is None or fill.size != 1 else float(fill.reshape(-1)[0])


def _own_pads_known(node: ir.Node, count: int) -> bool:
    """Whether the reader states its own padding in ``pads``; SAME_UPPER depends on the size of its input."""
    auto = node.attributes.get("auto_pad")
    stated = auto is None or auto.as_string() in ("NOTSET", "VALID")
    return stated and len(ints_attribute(node, "pads", (0,) * count)) == count


def _is_exact(
    node: ir.Node, source: ir.Value, own: tuple[int, ...], added: tuple[int, ...], fill: float
) -> bool:
    if node.op_type == "Conv":
        return fill == 0
    if int_attribute(node, "ceil_mode", 0) or not _windows_reach_data(node, own, added):
        return False
    if node.op_type == "AveragePool":
        return fill == 0 and (int_attribute(node, "count_include_pad", 0) == 1 or not any(own))
    return fill == -np.inf or (fill == 0 and _is_never_negative(source))


def _windows_reach_data(node: ir.Node, own: tuple[int, ...], added: tuple[int, ...]) -> bool:
    """Whether every pooling window sees an element that is not padding (runtimes require it)."""
    kernel = ints_attribute(node, "kernel_shape", ())
    dense = all(d == 1 for d in ints_attribute(node, "dilations", ()))
    return dense and all(a + b < k for a, b, k in zip(own, added, kernel * 2, strict=True))


def _is_never_negative(value: ir.Value) -> bool:
    producer = value.producer()
    if is_op(producer, "Clip") and producer is not None:
        low = constant_value(input_at(producer, 1))
        return low is not None and bool(np.all(np.signbit(low.astype(np.float64)) == 0))
    return is_op(producer, *NEVER_NEGATIVE)
