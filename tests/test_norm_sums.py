"""Sums in front of LayerNormalization: which become Sum, for whom, and that ONNX Runtime leaves them alone."""

from __future__ import annotations

import pytest
from flow import optimized, quantize_and_check
from graphs import assert_same_outputs, op_counts, parse

import onnxq
from onnxq.graph import all_nodes
from onnxq.model import load, write
from onnxq.norm_sums import sums_before_norms, write_as_sums
from onnxq.passes.infer_shapes import InferShapesPass

NORM = "z = LayerNormalization<axis=-1>(s, g, b)"

OLD_NORM = """m = ReduceMean<axes=[-1]>(s)  d = Sub(s, m)  q = Mul(d, d)  v = ReduceMean<axes=[-1]>(q)
    e = Add(v, tiny)  r = Sqrt(e)  n = Div(d, r)  n2 = Mul(n, g)  z = Add(n2, b)"""


def encoder(norm: str = NORM, total: str = "s = Add(p, x)", opset: int = 17, outputs: str = ""):
    """A linear layer, and the sum of what goes in and comes out, normalized."""
    return parse(
        f"""g (float[N,M,64] x) => (float[N,M,64] z{outputs})
        <float[64,64] w, float[64] g, float[64] b, float[64] c, float[1] tiny>
        {{ p = MatMul(x, w)  {total}  {norm} }}""",
        opset=opset,
        check=not outputs,
    )


def half():
    """An encoder in float16."""
    return parse(
        """g (float16[N,M,64] x, float16[N,M,64] p, float16[64] g, float16[64] b) => (float16[N,M,64] z)
        { s = Add(p, x)  z = LayerNormalization<axis=-1>(s, g, b) }""",
        opset=17,
    )


def named(model) -> set:
    """The outputs of the Adds that are found."""
    InferShapesPass()(model)
    for number, node in enumerate(model.graph):
        node.name = f"node {number}"
    found = sums_before_norms(model)
    return {node.outputs[0].name for node in all_nodes(model) if node.name in found}


@pytest.mark.parametrize(("norm", "opset"), [(NORM, 17), (OLD_NORM, 13)])
def test_a_sum_that_only_a_norm_reads_is_found(norm, opset):
    assert named(encoder(norm, opset=opset)) == {"s"}


@pytest.mark.parametrize(
    "model",
    [
        encoder(total="s = Add(p, c)"),  # a bias
        encoder(total="s = Mul(p, x)"),
        encoder(norm=f"{NORM} t = Neg(s)", outputs=", float[N,M,64] t"),
        encoder(outputs=", float[N,M,64] s"),
        encoder(norm="z = Softmax(s)"),
        half(),
    ],
    ids=["bias", "no sum", "another reader", "graph output", "no norm", "float16"],
)
def test_other_sums_are_left_alone(model):
    assert named(model) == set()


def test_the_outputs_stay_the_same():
    model, changed = encoder(), encoder()
    InferShapesPass()(changed)
    for number, node in enumerate(changed.graph):
        node.name = f"node {number}"
    write_as_sums(changed, sums_before_norms(changed))
    assert op_counts(changed)["Sum"] == 1
    assert "Add" not in op_counts(changed)
    assert_same_outputs(model, changed)


def test_onnxruntime_does_not_fuse_them():
    flow = quantize_and_check(encoder(), "onnxruntime")
    kernels = [node.op_type for node in optimized(flow.int8).graph.node]
    assert "SkipLayerNormalization" not in kernels
    assert {"Sum", "LayerNormalization", "MatMulIntegerToFloat"} <= set(kernels)


def test_other_targets_keep_their_adds():
    flow = quantize_and_check(encoder(), "tensorrt")
    assert "Sum" not in op_counts(flow.int8)


def test_dynamic_quantization_does_it_too(tmp_path):
    write(encoder(), tmp_path / "float.onnx")
    onnxq.quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    assert op_counts(load(tmp_path / "int8.onnx"))["Sum"] == 1
