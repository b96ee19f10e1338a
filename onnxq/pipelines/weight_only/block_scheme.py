"""The number format of weights in blocks, and the form in which they are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from onnxq.algorithms.weights.block_scales import BlockGrid
from onnxq.core.config import QuantConfig
from onnxq.core.errors import TargetError
from onnxq.core.option_types import BlockFormat
from onnxq.core.plan import OPSET, OPSET_OF_BLOCKS
from onnxq.targets import TARGETS
from onnxq.targets.target import Target

BLOCK_SIZE = 32
"""The block size if neither the options nor the target name one."""

TABLE_BLOCK = 128
"""The largest block of a tied table in 8 bits, where a scale for fewer weights gains little."""

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""The float types of weights, and of their scales."""


@dataclass(frozen=True)
class FormatRule:
    """What a form of weights takes.

    Attributes:
        types: the types of weights.
        sizes: the block sizes.
        opset: the lowest opset of the model.
    """

    types: tuple[ir.DataType, ...]
    sizes: tuple[int, ...]
    opset: int


_INTEGERS = (ir.DataType.UINT4, ir.DataType.INT4, ir.DataType.UINT8, ir.DataType.INT8)
_SIZES = (16, 32, 64, 128, 256)

FORMATS: Mapping[BlockFormat, FormatRule] = {
    "matmulnbits": FormatRule((*_INTEGERS, ir.DataType.UINT2), _SIZES, OPSET),
    "dequantize": FormatRule(_INTEGERS, _SIZES, OPSET_OF_BLOCKS),
}
"""The forms, with their types; the first one that the target takes is the default.

Zero points take an eighth of a bit a weight in blocks of 32, and are worth more than that with 16 levels.
"""


@dataclass(frozen=True)
class BlockScheme:
    """The requested weights in blocks.

    Attributes:
        target: the deployment target.
        config: the options.
        format: the form in which they are written.
        dtype: the type of the stored numbers: signed ones have no zero points.
        size: the number of weights in a block.
        whole: the runtime needs each block to have the full size.
        accuracy_level: the attribute of MatMulNBits.
    """

    target: Target
    config: QuantConfig
    format: BlockFormat
    dtype: ir.DataType
    size: int
    whole: bool
    accuracy_level: int

    @property
    def opset(self) -> int:
        """The lowest opset of the written model."""
        return FORMATS[self.format].opset

    def grid(self, scale_type: ir.DataType) -> BlockGrid:
        """Return the numbers that weights are rounded to.

        Args:
            scale_type: the float type of the scales.
        """
        return BlockGrid(self.dtype.bitwidth, self.dtype.is_signed(), self.size, scale_type.numpy())

    def with_bits(self, bits: int) -> BlockScheme | None:
        """Return the same with weights of so many bits; None if the form has none.

        With as few levels as 2 bits give, zero points are there where the form has them.
        """
        rule, blocks = FORMATS[self.format], self.target.blocks
        assert blocks is not None
        able = [each for each in rule.types if self.format == "matmulnbits" or each in blocks.types]
        fitting = [each for each in able if each.bitwidth == bits]
        fitting.sort(key=lambda each: each.is_signed() != self.dtype.is_signed())
        return replace(self, dtype=fitting[0]) if fitting else None

    def table_block(self, columns: int) -> int | None:
        """Return the block size of a table with this many columns; None: a scale for each row.

        The latter is for standard operators, and where no size divides the columns.

        It is as large as possible up to `TABLE_BLOCK`: in 8 bits that costs little.
        """
        if self.format != "matmulnbits":
            return None
        sizes = [size for size in FORMATS[self.format].sizes if size <= TABLE_BLOCK and columns % size == 0]
        return max(sizes, default=None)


def find_block_scheme(target: Target, config: QuantConfig) -> BlockScheme:
    """Choose the scheme for ``target``.

    Raises:
        TargetError: the target takes no weights in blocks, or not this form, type or block size.
    """
    blocks = target.blocks
    if blocks is None:
        able = ", ".join(name for name, other in TARGETS.items() if other.blocks is not None)
        raise TargetError(f"target {target.name} takes no weights in blocks; targets that do: {able}")
    name = blocks.format if config.format == "auto" else config.format
    if name == "matmulnbits" and blocks.format != name:
        raise TargetError(
            f"target {target.name} has no operator MatMulNBits, which is ONNX Runtime's own: "
            "use --format dequantize"
        )
    rule = FORMATS[name]
    types = [dtype for dtype in rule.types if name == "matmulnbits" or dtype in blocks.types]
    sizes = [size for size in rule.sizes if size in blocks.sizes]
    wanted = config.weight and ir.DataType[config.weight.upper()]
    dtype, size = wanted or types[0], config.block_size or target.block_size or BLOCK_SIZE
    if dtype not in types or size not in sizes:
        raise TargetError(
            f"target {target.name} with format {name} takes weights of type "
            f"{', '.join(each.name.lower() for each in types)} in blocks of {', '.join(map(str, sizes))}; "
            f"got {dtype.name.lower()} in blocks of {size}"
        )
    return BlockScheme(target, config, name, dtype, size, blocks.whole, blocks.accuracy_level)
