"""The forms that a node may have."""

from dataclasses import replace

import onnx_ir as ir
import pytest

from onnxq.algorithms.mixed_precision.steps import (
    Precision,
    float_nodes,
    keep_float,
    widen_activations,
    wider_activations,
    wider_formats,
    widest_precision,
)
from onnxq.core.plan import QuantSpec
from onnxq.targets.lookup import get_target
from onnxq.targets.target import S4, S8, U4, U8, U16

INT8, UINT8, INT4 = ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4
INT16, UINT16 = ir.DataType.INT16, ir.DataType.UINT16


@pytest.mark.parametrize(
    ("target", "spec", "expected"),
    [
        ("onnxruntime", S4, [INT8]),
        ("onnxruntime", U4, [INT8]),
        ("onnxruntime", S8, []),
        ("openvino", S8, []),
        ("qnn", S8, []),
        ("onnxruntime", replace(S4, block_size=32), [INT8]),
        ("tensorrt", replace(S4, block_size=64), []),
    ],
)
def test_wider_formats_of_weights(target, spec, expected):
    assert [wider.dtype for wider in wider_formats(spec, get_target(target))] == expected


@pytest.mark.parametrize(
    ("target", "spec", "expected"),
    [("qnn", U8, [UINT16]), ("qnn", U16, []), ("onnxruntime", U8, []), ("ppl-w8a16", U16, [])],
)
def test_wider_activations_are_those_that_the_table_of_the_target_lists(target, spec, expected):
    assert [wider.dtype for wider in wider_activations(spec, get_target(target))] == expected


def test_of_wide_activations_of_both_signs_those_like_the_narrow_ones_are_taken():
    both = replace(get_target("qnn"), activation_types=frozenset({UINT8, INT16, UINT16}))
    assert [wider.dtype for wider in wider_activations(U8, both)] == [UINT16]
    assert [wider.dtype for wider in wider_activations(S8, both)] == [INT16]


def test_the_format_is_the_one_that_the_target_has_for_the_type():
    avx2 = get_target("onnxruntime-avx2")
    assert wider_formats(S4, avx2) == (avx2.weight_types[INT8],)
    assert wider_formats(S4, avx2)[0].reduce_bits == 1


def test_of_types_of_one_width_the_usual_one_is_taken_and_else_one_of_the_same_sign():
    target = replace(get_target("onnxruntime"), weight=QuantSpec(UINT8, symmetric=False))
    assert [wider.dtype for wider in wider_formats(S4, target)] == [UINT8]
    types = {UINT8: QuantSpec(UINT8, symmetric=False), INT8: S8, INT4: S4}
    neither = replace(target, weight=S4, weight_types=types)
    assert [wider.dtype for wider in wider_formats(S4, neither)] == [INT8]
    assert [wider.dtype for wider in wider_formats(U4, neither)] == [UINT8]


def test_the_highest_step_counts():
    steps = [Precision("a", INT8), Precision("b", INT8), *keep_float(["b", "c"])]
    steps += [*widen_activations(["a", "c", "d"], UINT16), Precision("a", INT4)]
    expected = {"a": {"weight": INT8, "activation": UINT16}, "d": {"activation": UINT16}}
    assert widest_precision(steps) == widest_precision(steps[::-1]) == expected
    assert float_nodes(steps) == {"b", "c"}
