"""Tables that are looked up and multiplied with, whichever copies of them a file has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from weight_blocks import FORMATS, Made

from calibrators.session import open_session

V, D = 300, 64

HEADS = {
    "turned": (f"{D},{V}", "y = MatMul(n, copy)"),
    "equal": (f"{V},{D}", "t = Transpose<perm=[1,0]>(copy)  y = MatMul(n, t)"),
    "gemm": (f"{V},{D}", "f = Reshape(n, rows)  y = Gemm<transB=1>(f, copy)"),
    "body": (
        f"{D},{V}",
        """y = If(flag) <then_branch = t () => (KIND[N,M,300] a) { a = MatMul(n, copy) },
                         else_branch = e () => (KIND[N,M,300] d) { m = MatMul(n, copy)  d = Neg(m) }>""",
    ),
}
"""What follows the layers of a model: the shape of a copy of the table, and how it is read."""


def tied(head: str, kind: str = "float") -> tuple[str, dict[str, object]]:
    """A model with the table as it is looked up, and a copy of it as the last matrix."""
    shape, nodes = HEADS[head]
    rank2 = head == "gemm"
    rows = f", int64[2] rows = {{-1, {D}}}" if rank2 else ""
    flag = ", bool flag" if head == "body" else ""
    output = f"{kind}[NM,{V}]" if rank2 else f"{kind}[N,M,{V}]"
    text = f"""g (int64[N,M] i{flag}) => ({output} y)
        <{kind}[{V},{D}] table, {kind}[{shape}] copy, {kind}[{D},{D}] w{rows}>
        {{ e = Gather(table, i)  n = MatMul(e, w)  {nodes.replace("KIND", kind)} }}"""
    table = np.random.default_rng(0).standard_normal((V, D)) / 8
    return text, {"table": table, "copy": table.T if shape.startswith(str(D)) else table}


LOOK_UPS = {
    "matmulnbits": ({"GatherBlockQuantized": 1}, ir.DataType.UINT8),
    "dequantize": ({"Gather": 2, "Cast": 1, "Mul": 1}, ir.DataType.INT8),
}
"""Format -> the operators of a look-up, and the type of the table."""


def large(made: Made) -> list[tuple[ir.DataType, int]]:
    """Types and sizes of the constants as large as the table."""
    tensors = [value.const_value for value in made.model.graph.initializers.values()]
    return [(tensor.dtype, tensor.size) for tensor in tensors if tensor.size >= V * D]


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("head", HEADS)
def test_a_copy_of_the_table_is_not_stored_again(head: str, form: str, kind: str, tmp_path: Path) -> None:
    text, given = tied(head, kind)
    made = Made(tmp_path, text, given, format=form, weight="uint8")
    operators, dtype = LOOK_UPS[form]
    assert operators.items() <= made.counts.items()
    assert large(made) == [(dtype, V * D)]
    assert made.error() < 0.03


LONE = """g (int64[N,M] i) => (float[N,M,48] y) <float[300,75] t, float[75,48] w>
{ e = Gather(t, i)  y = MatMul(e, w) }"""


@pytest.mark.parametrize("form", FORMATS)
def test_rows_that_no_block_divides_have_a_scale_each(form: str, tmp_path: Path) -> None:
    made = Made(tmp_path, LONE, format=form, weight="uint8")
    assert {"Gather": 2, "Cast": 1, "Mul": 1}.items() <= made.counts.items()
    assert tuple(made.model.graph.initializers["t_scale"].shape) == (300, 1)
    assert made.error() < 0.02


def test_a_copy_with_one_other_number_is_another_matrix(tmp_path: Path) -> None:
    text, given = tied("turned")
    given["copy"] = np.array(given["copy"])
    given["copy"][D // 2, V // 2] += 1
    made = Made(tmp_path, text, given, weight="uint8")
    assert made.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 2}
    assert made.error() < 0.03


def test_openvino_runs_on_the_integers(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    text, given = tied("turned")
    made = Made(tmp_path, text, given, target="openvino", weight="uint4")
    compiled = openvino.Core().compile_model(str(made.output), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    kinds = {
        (info["layerType"].astype(str), info["runtimePrecision"].astype(str))
        for info in (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    }
    assert {("Gather", "i8"), ("FullyConnected", "i8"), ("FullyConnected", "u4")} <= kinds
    ids = np.arange(6).reshape(2, 3)
    before = open_session(made.float).run(None, {"i": ids})[0]
    after = next(iter(compiled({"i": ids}).values()))
    assert np.linalg.norm(after - before) < 0.15 * np.linalg.norm(before)
