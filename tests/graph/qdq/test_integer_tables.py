"""Embedding tables whose rows are looked up in integers."""

import numpy as np
import onnx_ir as ir
import pytest
from flow import check, quantize
from graphs import parse

from onnxq.core.config import QuantConfig
from onnxq.graph.passes import simplify
from onnxq.planner import make_plan
from onnxq.targets.lookup import get_target

TEXT = """g (int64[N,4] i) => (float[N,4,16] y) <float[1024,32] table, float[32,16] w>
    { e = Gather (table, i)  y = MatMul (e, w) }"""


def model_of(table=None, text=TEXT, **more):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1024, 32)) if table is None else table
    weights = {"table": np.float32(table), "w": rng.standard_normal((32, 16), np.float32), **more}
    return parse(text, **weights)


def plan_of(model, target="onnxruntime", **options):
    return make_plan(simplify(model), get_target(target), QuantConfig(**options))


def look_ups(plan):
    return len(plan.integer_tables)


def test_rows_are_integers_and_the_file_is_small():
    feeds = {"i": np.random.default_rng(0).integers(0, 1024, (2, 4))}
    flow = quantize(model_of(), feeds=feeds)
    check(flow)
    stored = {value.dtype for value in flow.int8.graph.initializers.values() if value.shape == (1024, 32)}
    assert stored == {ir.DataType.INT8}


@pytest.mark.parametrize(
    "options", [{"exclude": ("op:Gather",)}, {"target": "tensorrt"}, {"goal": "sqnr>=60"}], ids=str
)
def test_they_stay_float(options):
    options = dict(options)
    assert look_ups(plan_of(model_of(), options.pop("target", "onnxruntime"), **options)) == 0


def test_a_table_that_8_bits_hold_badly_stays_float():
    table = np.random.default_rng(1).standard_normal((1024, 32))
    assert look_ups(plan_of(model_of(table))) == 1
    table[:, 0] *= 1000
    assert look_ups(plan_of(model_of(table))) == 0


def test_a_small_table_and_one_that_others_read_stay_float():
    small = "g (int64[N,4] i) => (float[N,4,8] y) <float[64,8] table> { y = Gather (table, i) }"
    shared = """g (int64[N,4] i, float[32,4] x) => (float[N,4,32] y, float[1024,4] z) <float[1024,32] table>
        { y = Gather (table, i)  z = MatMul (table, x) }"""
    rng = np.random.default_rng(2)
    assert look_ups(plan_of(parse(small, table=rng.standard_normal((64, 8), np.float32)))) == 0
    assert look_ups(plan_of(parse(shared, table=rng.standard_normal((1024, 32), np.float32)))) == 0
