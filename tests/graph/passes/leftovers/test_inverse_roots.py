"""Normalizations in primitives get the form that runtimes know."""

import re

import numpy as np
import pytest
from graphs import assert_same_outputs, op_counts, parse

from onnxq.graph.passes import simplify, single

CONSTANTS = "float two, float half, float minus, float one, float eps, float[16] g, int64[1] last"
VALUES = {"two": 2, "half": 0.5, "minus": -0.5, "one": 1, "eps": 1e-5, "last": -1}
MEAN = "s = Pow (x, two) u = ReduceMean (s, last) e = Add (u, eps)"
INVERSES = {
    "reciprocal": "q = Sqrt (e) i = Reciprocal (q)",
    "quotient": "q = Sqrt (e) i = Div (one, q)",
    "power": "i = Pow (e, minus)",
}


def norm(nodes, outputs="float[N,5,16] y"):
    used = [text for text in CONSTANTS.split(", ") if re.search(rf"\b{text.split()[-1]}\b", nodes)]
    values = {name: value for name, value in VALUES.items() if any(t.endswith(f" {name}") for t in used)}
    text = f"g (float[N,5,16] x) => ({outputs}) <{', '.join(used)}> {{ {nodes} }}"
    return parse(text, opset=18, **values)


@pytest.mark.parametrize("clean", [simplify, single])
@pytest.mark.parametrize("product", ["Mul (x, i)", "Mul (i, x)"])
@pytest.mark.parametrize("name", INVERSES)
def test_products_with_inverse_roots_of_means_are_quotients(name, product, clean):
    before = norm(f"{MEAN} {INVERSES[name]} n = {product} y = Mul (g, n)")
    after = clean(before)
    expected = {"Pow": 1, "ReduceMean": 1, "Add": 1, "Sqrt": 1, "Div": 1, "Mul": 1}
    assert op_counts(after) == expected
    assert_same_outputs(before, after)


@pytest.mark.parametrize(
    "nodes",
    [
        f"{MEAN} q = Sqrt (e) i = Reciprocal (q) j = Mul (i, g) y = Mul (x, j)",
        f"{MEAN} q = Sqrt (e) i = Reciprocal (q) n = Mul (x, i) y = Sub (n, i)",
        f"{MEAN} q = Sqrt (e) i = Reciprocal (q) j = Mul (i, i) y = Mul (x, j)",
        "e = Mul (x, x) q = Sqrt (e) i = Reciprocal (q) n = Mul (x, i) y = Mul (n, g)",
    ],
)
def test_other_inverses_stay(nodes):
    before = norm(nodes)
    after = single(before)
    assert op_counts(after) == op_counts(before)


def test_an_inverse_that_is_an_output_stays():
    before = norm(f"{MEAN} q = Sqrt (e) i = Reciprocal (q) y = Mul (x, i)", "float[N,5,16] y, float[N,5,1] i")
    after = single(before)
    assert op_counts(after) == op_counts(before)


def test_a_body_is_rewritten():
    before = parse(
        """g (float[N,5,16] x, bool c) => (float[N,5,16] y) <float eps, float two, int64[1] last> {
        y = If (c) <then_branch = a () => (float[N,5,16] t) { s = Pow (x, two) u = ReduceMean (s, last)
            e = Add (u, eps) q = Sqrt (e) i = Reciprocal (q) t = Mul (x, i) },
        else_branch = b () => (float[N,5,16] f) { f = Neg (x) }> }""",
        opset=18,
        **{name: VALUES[name] for name in ("eps", "two", "last")},
    )
    after = single(before)
    counts = op_counts(after)
    assert counts["Div"] == 1
    assert "Reciprocal" not in counts
    assert_same_outputs(before, after, {"x": np.ones((2, 5, 16), np.float32), "c": np.array(True)})
