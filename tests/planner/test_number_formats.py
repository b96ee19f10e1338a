"""Which number formats a target takes, and what it says of those that it does not."""

import onnx_ir as ir
import pytest

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, TargetError
from onnxq.core.plan import QuantSpec
from onnxq.planner.number_formats import find_formats
from onnxq.targets import TARGETS
from onnxq.targets.lookup import get_target


def formats(target="onnxruntime", **options):
    return find_formats(get_target(target), QuantConfig(target=target, **options))


@pytest.mark.parametrize("name", TARGETS)
def test_without_options_they_are_the_targets_own(name):
    target = get_target(name)
    found = formats(name)
    assert found.activation == target.activation
    if target.block_size is None:
        assert (found.weight, found.blocked) == (target.weight, None)
        assert target.weight_types[target.weight.dtype] == target.weight
    else:
        assert (found.weight, found.blocked.block_size) == (None, target.block_size)
    opsets = {ir.DataType.UINT16: 21, ir.DataType.FLOAT8E4M3FN: 19}
    assert found.opset == (21 if found.blocked else opsets.get(found.activation.dtype, 13))


@pytest.mark.parametrize(
    ("target", "options", "opset"),
    [
        ("onnxruntime", {"weight": "uint8", "activation": "int8"}, 13),
        ("onnxruntime", {"weight": "int4"}, 21),
        ("onnxruntime", {"block_size": 32}, 21),
        ("tensorrt", {"weight": "int4", "block_size": 128}, 21),
    ],
)
def test_the_opset_follows_from_the_formats(target, options, opset):
    assert formats(target, **options).opset == opset


def test_four_bits_use_all_their_levels():
    assert formats(weight="int4").weight.limits == (-8, 7)
    assert formats(weight="uint4").weight == QuantSpec(ir.DataType.UINT4, symmetric=False)


def test_blocks_come_beside_what_has_none():
    found = formats(weight="int4", block_size=32)
    assert found.blocked == QuantSpec(ir.DataType.INT4, symmetric=True, block_size=32)
    assert found.weight == QuantSpec(ir.DataType.INT4, symmetric=True)
    assert formats("tensorrt", weight="int4", block_size=64).weight is None


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        (
            "tensorrt",
            {"weight": "int4"},
            r"tensorrt does not take int4 as weight type; valid: int8; with --block-size 16, 32, 64, 128, 256: int4$",
        ),
        (
            "tensorrt",
            {"weight": "uint4", "block_size": 64},
            "tensorrt does not take uint4 weights in blocks of 64",
        ),
        (
            "tensorrt",
            {"block_size": 64},
            "tensorrt does not take int8 weights in blocks of 64; valid: int8; with",
        ),
        (
            "onnxruntime",
            {"weight": "int4", "block_size": 48},
            r"blocks of 48; valid: .* 16, 32, 64, 128, 256: int4",
        ),
        (
            "onnxruntime",
            {"activation": "int16"},
            "does not take int16 as activation type; valid: int8, uint8$",
        ),
        ("tensorrt", {"activation": "uint16"}, "does not take uint16 as activation type; valid: int8$"),
    ],
)
def test_a_refusal_says_what_the_target_takes(target, options, message):
    with pytest.raises(TargetError, match=message):
        formats(target, **options)


def test_activations_have_no_four_bits():
    with pytest.raises(ConfigError, match="activation: expected 'uint8'"):
        QuantConfig(activation="int4")
