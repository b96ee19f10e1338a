"""Tables that are looked up and multiplied with, whichever copies of them a file has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from weight_blocks import Made

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


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("head", HEADS)
def test_a_copy_of_the_table_is_not_stored_again(head: str, kind: str, tmp_path: Path) -> None:
    text, given = tied(head, kind)
    made = Made(tmp_path, text, given, weight="uint8")
    assert made.counts["GatherBlockQuantized"] == 1
    large = [v.const_value for v in made.model.graph.initializers.values() if v.const_value.size >= V * D]
    assert [(tensor.dtype, tensor.size) for tensor in large] == [(ir.DataType.UINT8, V * D)]
    assert made.error() < 0.03


def test_a_copy_with_one_other_number_is_another_matrix(tmp_path: Path) -> None:
    text, given = tied("turned")
    given["copy"] = np.array(given["copy"])
    given["copy"][D // 2, V // 2] += 1
    made = Made(tmp_path, text, given, weight="uint8")
    assert made.counts == {"GatherBlockQuantized": 1, "MatMulNBits": 2}
    assert made.error() < 0.03
