"""Which outputs are measured by distance, and which are equal or not."""

import pytest
from graphs import parse

from onnxq.verify.outputs.output_kinds import output_kinds
from onnxq.verify.outputs.row_origin import Rows

X = "float[N, 3, 8, 8] x"
WEIGHTS = "<float[4, 3, 1, 1] w, float low, float high, int64[4] table, int64 k, float[1] half>"
CONSTANTS = {"low": 0.0, "high": 255.0, "k": 2, "half": 0.5}

MEASURED = {
    "bytes": ("uint8", "r = Round(c) l = Clip(r, low, high) y = Cast<to = 2>(l)"),
    "whole numbers": ("int32", "y = Cast<to = 6>(c)"),
    "moved": ("uint8", "u = Cast<to = 2>(c) y = Transpose<perm = [0, 2, 3, 1]>(u)"),
    "a limit by Where": ("uint8", "m = Greater(c, high) l = Where(m, high, c) y = Cast<to = 2>(l)"),
    "quantized": ("uint8", "y = QuantizeLinear(c, high)"),
    "floats": ("float", "y = Softmax(c)"),
    "labels as floats": ("float", "a = ArgMax<axis = 1>(c) y = Cast<to = 1>(a)"),
    "only the input": ("int64", "s = Mul(x, high) y = Cast<to = 7>(s)"),
}
EQUAL = {
    "classes": ("int64", "y = ArgMax<axis = 1>(c)"),
    "classes in few bits": ("uint8", "a = ArgMax<axis = 1>(c) y = Cast<to = 2>(a)"),
    "classes that were floats": (
        "int32",
        "a = ArgMax<axis=1>(c) f = Cast<to=1>(a) s = Add(f, half) y = Cast<to=6>(s)",
    ),
    "colours of classes": ("int64", "a = ArgMax<axis = 1>(c) y = Gather<axis = 0>(table, a)"),
    "a mask": ("uint8", "m = Greater(c, half) y = Cast<to = 2>(m)"),
    "truth values": ("bool", "y = Less(c, half)"),
    "the size": ("int64", "y = Shape(c)"),
    "indices": ("int64", "f = Flatten(c) one = Unsqueeze(k, zero) v, y = TopK(f, one)"),
}


def kinds(outputs, nodes, opset=13):
    weights = WEIGHTS.replace(">", ", int64[1] zero>")
    text = f"g ({X}) => ({outputs}) {weights} {{ c = Conv(x, w) {nodes} }}"
    return list(output_kinds(parse(text, opset, check=False, zero=[0], **CONSTANTS)).values())


@pytest.mark.parametrize(("kind", "nodes"), MEASURED.values(), ids=MEASURED)
def test_measured(kind, nodes):
    assert kinds(f"{kind}[A, B, C, D] y", nodes)[0].measured


@pytest.mark.parametrize(("kind", "nodes"), EQUAL.values(), ids=EQUAL)
def test_equal_or_not(kind, nodes):
    assert not kinds(f"{kind} y", nodes)[0].measured


# --- rows -----------------------------------------------------------------------------------------

SCORES = "float[1, 12] s, float[1, 12, 4] boxes"
GIVEN = "<int64[1] k, int64[1] last, int64[1] first, int64[1] one, int64[1] first_k, int64[3] four, int64[2] flat, float[4, 4] m>"
TOPK = "v, i = TopK(s, k) "
FOUND = f"{TOPK} u = Unsqueeze(i, last) t = Tile(u, four) found = GatherElements<axis = 1>(boxes, t) "
NMS = """sb = Unsqueeze(s, first) sel = NonMaxSuppression(boxes, sb, k) j = Gather<axis = 1>(sel, last)
    n = Squeeze(j, last) all = Squeeze(boxes, first) """

ROWS = {
    "scores": ("v", TOPK, Rows(1, True)),
    "indices": ("i", TOPK, Rows(1, True)),
    "boxes": ("found", FOUND, Rows(1, True)),
    "shifted boxes": ("y", f"{FOUND} h = MatMul(found, m) y = Add(h, h)", Rows(1, True)),
    "boxes by column": ("y", f"{FOUND} y = Transpose<perm = [0, 2, 1]>(found)", Rows(2, True)),
    "boxes of one picture": ("y", f"{FOUND} y = Squeeze(found, first)", Rows(0, False)),
    "boxes in a flat list": ("y", f"{FOUND} y = Reshape(found, flat)", Rows(0, False)),
    "boxes and scores": (
        "y",
        f"{FOUND} w = Unsqueeze(v, last) y = Concat<axis = 2>(found, w)",
        Rows(1, True),
    ),
    "suppressed": ("sel", NMS, Rows(0, False)),
    "boxes that were left": ("y", f"{NMS} y = Gather<axis = 0>(all, n)", Rows(0, False)),
    "above a threshold": (
        "y",
        "b = Greater(s, s) z = NonZero(b) t = Transpose(z) y = GatherND(boxes, t)",
        Rows(0, False),
    ),
    "places": ("z", "b = Greater(s, s) z = NonZero(b)", Rows(1, False)),
    "filled up": ("y", f"{FOUND} y = Concat<axis = 1>(found, boxes)", Rows(1, True)),
    "a branch": (
        "y",
        f"""{FOUND} e = Cast<to = 9>(last) y = If(e) <then_branch = t () => (float[1, 5, 4] a) {{ a = Relu(found) }},
            else_branch = e () => (float[1, 5, 4] b) {{ b = Exp(found) }}>""",
        Rows(1, True),
    ),
    "classes of boxes": ("y", f"{FOUND} y = ArgMax<axis = 2, keepdims = 0>(found)", Rows(1, True)),
}
POSITIONS = {
    "the only one": ("y", "v, y = TopK(s, first_k)"),
    "the only one, squeezed": ("y", "v, i = TopK(s, first_k) y = Squeeze(i, last)"),
    "the best": ("y", f"{FOUND} y = Gather<axis = 1>(found, first)"),
    "the sum": ("y", f"{FOUND} y = ReduceSum(found, one)"),
    "beside a selection": ("y", f"{TOPK} y = Relu(boxes)"),
    "features of the best": ("y", f"{FOUND} y = ReduceMax<axes = [1]>(found)"),
}


def rows(output, nodes):
    text = f"g ({SCORES}) => ({output}) {GIVEN} {{ {nodes} }}"
    given = {
        "k": [5],
        "last": [-1],
        "first": [0],
        "one": [1],
        "first_k": [1],
        "four": [1, 1, 4],
        "flat": [-1, 4],
    }
    return output_kinds(parse(text, 13, check=False, **given))[output].rows


@pytest.mark.parametrize(("output", "nodes", "expected"), ROWS.values(), ids=ROWS)
def test_rows_that_a_selection_made(output, nodes, expected):
    assert rows(output, nodes) == expected


@pytest.mark.parametrize(("output", "nodes"), POSITIONS.values(), ids=POSITIONS)
def test_no_rows_of_a_selection(output, nodes):
    assert rows(output, nodes) is None
