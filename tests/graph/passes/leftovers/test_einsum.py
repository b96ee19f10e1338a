"""Einsum of data and a constant becomes a MatMul wherever it is a matrix product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from graphs import assert_same_outputs, feeds_for, op_counts, parse, run

from onnxq.graph.files import load
from onnxq.graph.passes import simplify, single

SIZES = {"b": 2, "s": 3, "h": 4, "n": 5, "d": 6, "e": 7, "v": 8, "k": 9, "B": 2, "T": 3}
PRODUCTS = {
    "bsh,hd->bsd": {"MatMul": 1},
    "bsh,dh->bsd": {"MatMul": 1, "Transpose": 1},
    "bsh, hnd -> bsnd": {"MatMul": 1, "Reshape": 1},
    "bsh,ndh->bsnd": {"MatMul": 1, "Reshape": 1, "Transpose": 1},
    "BTd,ndh->BTnh": {"MatMul": 1, "Reshape": 1},
    "bsnd,ndh->bsh": {"MatMul": 1, "Reshape": 1},
    "bsnd,dnh->bsh": {"MatMul": 1, "Reshape": 1, "Transpose": 1},
    "bsnd,nde->bsne": {"MatMul": 1, "Transpose": 2},
    "ebh,ehd->ebd": {"MatMul": 1},
    "beh,ehd->bed": {"MatMul": 1, "Transpose": 2},
    "ebsh,edh->ebsd": {"MatMul": 1, "Transpose": 3},
    "eh,ehd->ed": {"MatMul": 1, "Reshape": 2},
    "bne,nekd->bnkd": {"MatMul": 1, "Reshape": 1, "Transpose": 2},
    "bnke,nked->bnkd": {"MatMul": 1, "Reshape": 2, "Transpose": 2},
    "nkbse,nked->bskdn": {"MatMul": 1, "Reshape": 2, "Transpose": 2},
    "nke,nkedh->nkdh": {"MatMul": 1, "Reshape": 2},
    "hd,bsh->bsd": {"MatMul": 1},
    "bhs,hd->bds": {"MatMul": 1, "Transpose": 2},
    "h,hd->d": {"MatMul": 1, "Reshape": 2},
    "bsh,hd": {"MatMul": 1, "Transpose": 1},
    "...h,hd->...d": {"MatMul": 1},
    "b...h,hnd->b...nd": {"MatMul": 1, "Reshape": 1},
}
"""Equations, and the nodes that compute them."""

CONSTANT_FIRST = "hd,bsh->bsd"

OTHERS = ["bsh,h->bs", "bsh,hd->bd", "bsh,hdv->bsd", "b,h->bh", "bhh,hd->bd", "bsh,sh->bsh", "bsh,hdd->bsd"]


def made(equation: str) -> ir.Model:
    """A model with such an Einsum; b is known at run time."""
    left, right = equation.replace(" ", "").partition("->")[0].split(",")
    first = equation == CONSTANT_FIRST
    data, weight = (right, left) if first else (left, right)
    shape = ",".join(
        "2,3" if c == "." else "N" if c == "b" else str(SIZES[c]) for c in data.replace("...", ".")
    )
    sizes = ",".join(str(SIZES[c]) for c in weight.replace("...", ""))
    inputs = "w, x" if first else "x, w"
    return parse(
        f'g (float[{shape}] x) => (float y) <float[{sizes}] w> {{ y = Einsum<equation="{equation}">({inputs}) }}',
        check=False,
    )


@pytest.mark.parametrize("clean", [simplify, single])
@pytest.mark.parametrize("equation", PRODUCTS)
def test_products_become_matmul(equation: str, clean) -> None:
    before = made(equation)
    after = clean(before)
    counts = op_counts(after)
    assert counts["MatMul"] == 1
    assert "Einsum" not in counts
    if clean is single:
        assert counts == PRODUCTS[equation]
    feeds = feeds_for(before)
    (expected,), (found,) = run(before, feeds), run(after, feeds)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("equation", OTHERS)
def test_other_equations_stay(equation: str) -> None:
    assert op_counts(single(made(equation))) == {"Einsum": 1}


@pytest.mark.parametrize(
    "text",
    [
        'g (float[N,4] x, float[4,6] w) => (float[N,6] y) { y = Einsum<equation="bh,hd->bd">(x, w) }',
        'g (float[N,1] x) => (float[N,6] y) <float[4,6] w> { y = Einsum<equation="bh,hd->bd">(x, w) }',
        'g (float[N,4] x) => (float[4,N] y) { y = Einsum<equation="bh->hb">(x) }',
    ],
    ids=["two computed operands", "broadcast", "one operand"],
)
def test_what_is_no_product_with_a_constant_stays(text: str) -> None:
    assert op_counts(single(parse(text))) == {"Einsum": 1}


def test_bodies_and_shared_constants() -> None:
    before = parse(
        """g (float[N,3,4] x, bool flag) => (float[N,3,5,6] y) <float[4,5,6] w>
        { y = If(flag) <then_branch = t () => (float[N,3,5,6] a) { a = Einsum<equation="bsh,hnd->bsnd">(x, w) },
          else_branch = e () => (float[N,3,5,6] d) { m = Einsum<equation="bsh,hnd->bsnd">(x, w)  d = Neg(m) }> }"""
    )
    after = single(before)
    assert op_counts(after) == {"If": 1, "MatMul": 2, "Reshape": 2, "Neg": 1}
    assert sum(len(value.shape) == 2 for value in after.graph.initializers.values()) == 1
    for flag in (True, False):
        assert_same_outputs(before, after, feeds_for(before, flag=np.array(flag)))


@pytest.mark.parametrize("equation", ["bsh,hnd->bsnd", "BTd,ndh->BTnh"])
def test_weights_of_external_files_are_not_read(equation: str, tmp_path) -> None:
    ir.save(made(equation), tmp_path / "m.onnx", external_data="m.bin", size_threshold_bytes=0)
    before = load(tmp_path / "m.onnx")
    after = single(before)
    (stored,) = [value.const_value for value in after.graph.initializers.values() if value.dtype == 1]
    assert isinstance(stored, (ir.ExternalTensor, ir.LazyTensor))
    feeds = feeds_for(before)
    np.testing.assert_allclose(run(after, feeds)[0], run(before, feeds)[0], rtol=1e-5, atol=1e-5)
