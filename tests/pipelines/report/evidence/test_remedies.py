"""What to try: each cause is told from the others, and its advice names options that exist."""

import re

import numpy as np
import onnx_ir as ir
import pytest

from onnxq.core.config import QuantConfig
from onnxq.core.plan import Group, QuantParams, QuantSpec
from onnxq.pipelines.report.activations import Activation
from onnxq.pipelines.report.evidence.layer_error import TensorError
from onnxq.pipelines.report.evidence.remedies import Facts, explained

GROUP = Group("t", QuantSpec(ir.DataType.UINT8, symmetric=False), ("t",), ("t",))


def facts(clipped=0.0, bits=8, config=None, **changes):
    error = TensorError(**{"tensor": "t", "node": "n", "op_type": "Conv", "sqnr": 20.0, **changes})
    params = QuantParams(np.float32(1), np.uint8(0))
    return Facts(error, config or QuantConfig(), Activation(GROUP, params, 0, 255, clipped=clipped), bits)


CASES = {
    "it comes from s, as far off": (facts(source="s", inherited=20.5, rounding=40.0), "see that tensor"),
    "0.50% of its values are clipped": (facts(clipped=0.005, rounding=20.5), "--method minmax"),
    "the largest reaches 30 times": (facts(rounding=20.5, spread=30.0), "activation=uint16"),
    "too unevenly for so few bits": (facts(rounding=20.5), "--exclude n keeps it in float"),
    "weights of 4 bits": (facts(bits=4, rounding=40.0), "--correct adaround"),
    "one scale for all channels": (facts(config=QuantConfig(per_tensor=True)), "leave out --per-tensor"),
    "it is an output": (facts(is_output=True), "--exclude n"),
    "rounding of its inputs and weights": (facts(), "--correct adaround,bias"),
    "Conv makes errors of its inputs larger": (facts(bits=0), "--exclude n"),
}


@pytest.mark.parametrize("cause", CASES)
def test_each_cause_has_its_advice(cause):
    given, wanted = CASES[cause]
    told, advice = explained(given)
    assert cause in told
    assert wanted in advice
    options = {"--" + name.replace("_", "-") for name in QuantConfig.model_fields}
    assert set(re.findall(r"--[a-z-]+", advice)) <= options


def test_equalize_is_advised_only_if_it_was_not_tried():
    given = facts(rounding=20.5, spread=30.0, config=QuantConfig(correct=("bias",)))
    assert "--correct equalize" in explained(given)[1]
    assert "equalize" not in explained(facts(rounding=20.5, spread=30.0))[1]
