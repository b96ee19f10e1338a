"""Plans with some nodes float, and the ranges that they get."""

import numpy as np
import pytest
from benches import bench_for

from onnxq.algorithms.autotune.derived_plan import derive_plan, without
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError

POOLED = """g (float[N,4,8,8] x) => (float[N,4,4,4] y) <float[4,4,1,1] w, float[4,4,1,1] v, float[4,4,1,1] u>
{ a = Conv(x, w)  r = Relu(a)  p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)  b = Conv(p, v)
  c = Conv(b, u)  y = Relu(c) }"""

CONFIG = QuantConfig(method="minmax", quantize_outputs=True)


@pytest.fixture
def draft():
    return bench_for(POOLED, quantize_outputs=True)[0]


def node(draft, output):
    return next(n.name for n in draft.reference.graph if n.outputs[0].name == output)


def test_nothing_kept_float_changes_nothing(draft):
    assert derive_plan(draft.reference, draft.plan, CONFIG, ()) is draft.plan


def test_what_stays_keeps_its_parameters(draft):
    plan = derive_plan(draft.reference, draft.plan, CONFIG, {node(draft, "c")})
    assert draft.plan.integer_nodes.keys() - plan.integer_nodes.keys() == {node(draft, "c")}
    for name in plan.groups:
        assert plan.params[name] is draft.plan.params[name]


def test_a_tensor_takes_the_range_that_it_shared(draft):
    nodes = {node(draft, "a"), node(draft, "p")}
    plan = derive_plan(draft.reference, draft.plan, CONFIG, nodes)
    assert "p" not in draft.plan.groups
    shared = next(group for group in draft.plan.groups.values() if "p" in group.tensors)
    np.testing.assert_allclose(plan.params["p"].scale, draft.plan.params[shared.name].scale, rtol=1e-6)
    assert plan.params["p"].zero_point == draft.plan.params[shared.name].zero_point


def test_everything_float(draft):
    plan = derive_plan(draft.reference, draft.plan, CONFIG, draft.plan.integer_nodes)
    assert not plan.integer_nodes
    assert not plan.points


def test_a_range_that_nobody_knows(draft):
    less = derive_plan(draft.reference, draft.plan, CONFIG, draft.plan.integer_nodes)
    with pytest.raises(CalibrationError, match="the range of tensor 'x' is not known"):
        derive_plan(draft.reference, less, CONFIG, {node(draft, "c")})


def test_names_are_no_patterns():
    config = without(QuantConfig(exclude=("op:Add",)), {"conv[1]", "a*"})
    assert config.exclude == ("op:Add", "a[*]", "conv[[]1]")
