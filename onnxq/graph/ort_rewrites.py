"""Rewrites for ONNX Runtime's kernels: pad input channels, and keep nodes unfused that are better off so.

`pad_input_channels` adds channels of zeros to convolutions that read few channels, such as the three of an
image, because integer kernels are then faster:

    x[N, 3, …] -> Q -> DQ -> Conv(w[O, 3, …])
    x[N, 3, …] -> Pad -> Q -> DQ -> Conv(w[O, 4, …])

The kernels of ONNX Runtime read four channels at a time if there are that many, else one.
The products of zeros are zero, so the outputs stay the same.

`unfuse_layernorm_adds` rewrites sums before LayerNormalization so that the runtime does not fuse the two.
ONNX Runtime fuses an Add and a LayerNormalization to SkipLayerNormalization. Its kernel on the CPU takes
several times as long as the two (release 1.31: five times for 128 x 384, more for larger ones). A Sum
computes the same as the Add and is not fused.

`separate_from_qdq` keeps a node in float whose integer kernel would compute something else. The runtime fuses
every AveragePool between DQ and Q, also where its kernel lacks an attribute. A Sum of one tensor between them
computes nothing, but is not removed:

    DQ -> AveragePool -> Q
    DQ -> Sum -> AveragePool -> Q

`join_float_readers` lets float nodes that read the same quantized tensor read one tensor of reals. The
runtime gives each reader of a DequantizeLinear one of its own, and its fusions of several nodes (Gelu,
LayerNormalization, SiLU) do not see that all of them hold the same. A Sum of one tensor between them stays:

    DQ -> Erf, DQ -> Mul
    DQ -> Sum -> Erf, Mul

`unfuse_products` separates products with weights in blocks from the node after them. ONNX Runtime uses no
MatMulNBits for a product that it takes for one with a Relu or Clip, or for a Gemm with a computed addend. An
Add of the bias, or of zeros, prevents both, and becomes part of MatMulNBits:

    MatMul(x[A, B, K], DQ(w)) -> Relu          MatMul(x, DQ(w)) -> Add(zeros[N]) -> Relu
    Gemm(x[M, K], DQ(w), b[N]) -> Relu         Gemm(x, DQ(w)) -> Add(b) -> Relu
    MatMul(x[M, K], DQ(w)) -> Add(m[M, N])     Gemm(x, DQ(w)) -> Add(zeros[N]) -> Add(m)

`keep_apart_from_fp8` keeps nodes unfused beside 8-bit floating-point numbers. ONNX Runtime takes these for
integers (release 1.32): it drops a Relu before Q, which changes the result, and does not load a model with a
Clip or Transpose there, with a Conv between DQ and Q, or with a MatMul after two DQ. A Max of one tensor
computes nothing, has a kernel for float16 too, and TensorRT drops it:

    Relu -> Q             Relu -> Max -> Q
    MatMul(DQ, DQ)        MatMul(Max(DQ), DQ)

`keep_layout_of_cubic` keeps the channels of a cubic Resize where they are. Integer convolutions have their
channels last, and ONNX Runtime moves a Resize between two of them to that layout too. But its cubic kernel
takes channels second only, and the model does not load (release 1.31). Nothing is moved across a Reshape,
which here gives the shape that is there:

    Conv -> Resize -> Conv
    Conv -> Resize -> Reshape -> Conv
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Container, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from onnxq.core.plan import FLOATING
from onnxq.graph.nodes import (
    add_initializer,
    all_nodes,
    constant_value,
    input_at,
    is_op,
    name_of,
    rank,
    replace_value,
    unused_name,
    unused_node,
)
from onnxq.graph.operators import attribute_value, groups_of, weight_shape
from onnxq.graph.walks import producer_of, readers_of, sole_producer

FEWEST_OUTPUTS = 16
"""Least number of output channels; with fewer, the Pad takes longer than the convolution gains."""


def pad_input_channels(model: ir.Model, multiples: Mapping[str, int]) -> None:
    """Pad the input channels of convolutions to a multiple of a number, where possible.

    It is possible if a convolution reads a graph input through Q and DQ, and is the only reader of both this
    data and its weights.

    Args:
        model: a Q/DQ model; it is changed.
        multiples: name of a convolution -> number of which its input channels should be a multiple.
    """
    for node in [node for node in model.graph if node.name in multiples]:
        _fill(model, node, multiples[name_of(node)])
    common.NameFixPass()(model)


def _fill(model: ir.Model, conv: ir.Node, multiple: int) -> None:
    data, weight = (_source(value, "DequantizeLinear") for value in conv.inputs[:2])
    quantize = None if data is None else _source(data.inputs[0], "QuantizeLinear")
    levels = None if weight is None else weight.inputs[0]
    stored = constant_value(levels)
    if quantize is None or data is None or weight is None or levels is None or stored is None:
        return
    real, scale = quantize.inputs[0], constant_value(data.inputs[1])
    if real is None or not _is_given(real) or real.shape is None:
        return  # elsewhere Q fuses with the node before it, and a Pad would separate them
    if scale is None or scale.size != 1:
        return  # with per-channel scales, the new channels would have none
    more = -stored.shape[1] % multiple
    if not more or len(stored) < FEWEST_OUTPUTS or groups_of(conv) != 1:
        return
    zeros = np.broadcast_to(_zero_points(weight, stored), (len(stored), more, *stored.shape[2:]))
    filled = np.concatenate([stored, zeros], axis=1)
    weight.replace_input_with(0, add_initializer(model, f"{levels.name}_filled", filled))
    weight.outputs[0].shape = ir.Shape(filled.shape)
    quantize.replace_input_with(0, padded := _padded(model, real, more, quantize))
    for node in (quantize, data):
        node.outputs[0].shape = padded.shape
    if not levels.uses():
        del model.graph.initializers[name_of(levels)]


def _is_given(value: ir.Value) -> bool:
    """Whether the value is a graph input, or one in another type."""
    maker = value.producer()
    source = maker.inputs[0] if maker is not None and is_op(maker, "Cast") else value
    return source is not None and source.is_graph_input()


def _source(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that produces ``value``, if it has this type and ``value`` has a single reader."""
    node = sole_producer(value)
    return node if is_op(node, op_type) else None


def _zero_points(weight: ir.Node, stored: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the integers that stand for 0: one for each output channel, or one for all."""
    points = constant_value(input_at(weight, 2))
    return np.zeros(1, stored.dtype) if points is None else points.reshape(-1, *[1] * (stored.ndim - 1))


def _padded(model: ir.Model, real: ir.Value, more: int, reader: ir.Node) -> ir.Value:
    """Add ``more`` channels of zeros to ``real``, by a Pad before ``reader``."""
    assert real.shape is not None
    ends = np.zeros((2, len(real.shape)), np.int64)
    ends[1, 1] = more
    pads = add_initializer(model, f"{real.name}_pads", ends.reshape(-1))
    node = ir.node("Pad", [real, pads], name=f"{real.name}_Pad")
    model.graph.insert_before(reader, node)
    padded, channels = node.outputs[0], real.shape[1]
    padded.name, padded.type, padded.shape = f"{real.name}_filled", real.type, real.shape.copy()
    padded.shape[1] = channels + more if isinstance(channels, int) else None
    return padded


_NORMS = (["LayerNormalization"], ["ReduceMean", "Sub"])
"""Operators that read such a sum: LayerNormalization, or the nodes that compute it before opset 17."""


def adds_before_layernorm(model: ir.Model) -> frozenset[str]:
    """Name the Adds of two computed tensors that are read only by a LayerNormalization."""
    return frozenset(name_of(node) for node in all_nodes(model) if _is_before_norm(node))


def unfuse_layernorm_adds(model: ir.Model, names: Collection[str]) -> None:
    """Rewrite the Adds with these names as Sums."""
    for node in all_nodes(model):
        if node.name in names:
            node.op_type = "Sum"


def _is_before_norm(node: ir.Node) -> bool:
    if not is_op(node, "Add") or any(constant_value(value) is not None for value in node.inputs):
        return False
    total = node.outputs[0]
    if total.dtype != ir.DataType.FLOAT or total.is_graph_output():  # Sum has no kernel for float16
        return False
    return sorted(use.node.op_type for use in total.uses()) in _NORMS


def separate_from_qdq(model: ir.Model, names: Collection[str]) -> None:
    """Insert a Sum of one tensor before each node of the main graph with one of these names.

    Args:
        model: a Q/DQ model; it is changed.
        names: names of nodes whose first input comes from a DequantizeLinear.
    """
    for node in [node for node in model.graph if node.name in names]:
        source = node.inputs[0]
        assert source is not None
        total = ir.node("Sum", [source], name=unused_node(f"{name_of(node)}_Sum", model))
        out = total.outputs[0]
        out.name, out.type = unused_name(f"{source.name}_apart", model), source.type
        out.shape = source.shape
        model.graph.insert_before(node, total)
        node.replace_input_with(0, out)


def keep_apart_from_fp8(model: ir.Model) -> None:
    """Insert a Max of one tensor where ONNX Runtime would fuse a node with 8-bit floating-point numbers.

    Args:
        model: a Q/DQ model; it is changed.
    """
    for node in list(model.graph):
        maker = producer_of(input_at(node, 0))
        before_q = is_op(node, "QuantizeLinear") and node.outputs[0].dtype in FLOATING
        if maker is not None and (before_q or (is_op(node, "MatMul") and _reads_fp8(maker))):
            _insert_max(model, node)


def _reads_fp8(maker: ir.Node) -> bool:
    value = maker.inputs[0]
    return is_op(maker, "DequantizeLinear") and value is not None and value.dtype in FLOATING


def _insert_max(model: ir.Model, node: ir.Node) -> None:
    """Insert a Max of one tensor before the first input of ``node``."""
    source = node.inputs[0]
    assert source is not None
    same = ir.node("Max", [source], name=unused_node(f"{source.name}_Max", model))
    out = same.outputs[0]
    out.name, out.type = unused_name(f"{source.name}_apart", model), source.type
    out.shape = source.shape
    model.graph.insert_before(node, same)
    node.replace_input_with(0, out)


def join_float_readers(model: ir.Model, integer_nodes: Container[str | None]) -> None:
    """Let float nodes of the main graph that read one quantized tensor do so through one Sum of it.

    Args:
        model: a Q/DQ model; it is changed.
        integer_nodes: names of the nodes that need a DequantizeLinear of their own.
    """
    alike: dict[tuple[object, ...], list[ir.Node]] = defaultdict(list)
    for node in model.graph:
        if is_op(node, "DequantizeLinear") and _is_for_floats(node, integer_nodes):
            alike[tuple(node.inputs), node.attributes.get_int("axis", 1)].append(node)
    for nodes in alike.values():
        if len({reader for node in nodes for reader in readers_of(node)}) > 1:
            _join(model, nodes)


def _is_for_floats(node: ir.Node, integer_nodes: Container[str | None]) -> bool:
    """Whether a DequantizeLinear of a computed tensor has float nodes as its only readers."""
    if is_op(producer_of(node.inputs[0]), "QuantizeLinear") and not node.outputs[0].is_graph_output():
        return not any(reader.name in integer_nodes for reader in readers_of(node))
    return False


def _join(model: ir.Model, nodes: list[ir.Node]) -> None:
    """Let the readers of these DequantizeLinear nodes read a Sum of the first one; the others are removed."""
    first = nodes[0].outputs[0]
    total = ir.node("Sum", [first], name=unused_node(f"{name_of(nodes[0])}_Sum", model))
    out = total.outputs[0]
    out.name, out.type, out.shape = unused_name(f"{first.name}_apart", model), first.type, first.shape
    for node in nodes:
        for use in tuple(node.outputs[0].uses()):
            if use.node is not total:
                use.node.replace_input_with(use.idx, out)
        if node is not nodes[0]:
            model.graph.remove(node, safe=True)
    model.graph.insert_after(nodes[0], total)


def keep_layout_of_cubic(model: ir.Model) -> None:
    """Insert a Reshape that changes nothing after each cubic Resize of the main graph that a node reads.

    Args:
        model: a Q/DQ model; it is changed.
    """
    resizes = [
        node for node in model.graph if is_op(node, "Resize") and attribute_value(node, "mode") == "cubic"
    ]
    for node in resizes:
        source, readers = node.outputs[0], list(node.outputs[0].uses())
        if source.shape is None or not readers:
            continue
        name = unused_name(f"{source.name}_same", model)
        same = add_initializer(model, name, np.zeros(len(source.shape), np.int64))
        reshape = ir.node("Reshape", [source, same], name=unused_node(f"{name_of(node)}_Reshape", model))
        out = reshape.outputs[0]
        out.name, out.type = unused_name(f"{source.name}_kept", model), source.type
        out.shape = source.shape
        model.graph.insert_after(node, reshape)
        for reader, index in readers:
            reader.replace_input_with(index, out)


def unfuse_products(model: ir.Model, names: Collection[str]) -> None:
    """Let an Add of the bias, or of zeros, follow the products with these names.

    Args:
        model: a Q/DQ model; it is changed.
        names: names of MatMul and Gemm nodes whose weight has a known shape.
    """
    for node in [node for node in model.graph if node.name in names]:
        _add_after(model, node)


def _add_after(model: ir.Model, node: ir.Node) -> None:
    """Move the bias of a product, or zeros, into an Add after it."""
    columns = weight_shape(node)[1]
    bias = input_at(node, 2)
    if bias is None:
        zeros = unused_name(f"{node.name}_zeros", model)
        bias = add_initializer(model, zeros, np.zeros(columns, np.float32))
    if columns == 1:  # the runtime removes an Add of a single zero
        node.op_type, add_type = "MatMul", "Sum"
    else:  # it fuses an Add with a MatMul of two matrices to a Gemm, but not with a Gemm
        node.op_type, add_type = "Gemm" if rank(node.inputs[0]) == 2 else node.op_type, "Add"
    node.resize_inputs(2)
    product = node.outputs[0]
    add = ir.node(add_type, [product, bias], name=unused_node(f"{node.name}_{add_type}", model))
    model.graph.insert_after(node, add)
    total = add.outputs[0]
    replace_value(product, total)
    add.replace_input_with(0, product)
    product.name, product.type = unused_name(f"{total.name}_product", model), total.type
    product.shape = total.shape
