"""A deployment target as a table of rules, and the number formats that several targets share.

The annotations are read by pydantic, which validates the YAML file of a user's own target (see `yaml_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
)

from onnxq.core.option_types import BlockFormat, FloatType
from onnxq.core.plan import QuantSpec

TYPES: Mapping[str, ir.DataType] = {
    dtype.name.lower(): dtype
    for dtype in (
        *(ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8),
        *(ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.FLOAT8E4M3FN),
    )
}
"""The number types that a YAML file may name."""


def _number_type(value: Any) -> Any:
    """The type that a file names, or ``value`` if it is one already."""
    if isinstance(value, ir.DataType):
        return value
    if not isinstance(value, str) or value not in TYPES:
        raise ValueError(f"expected one of {', '.join(TYPES)}; got {value!r}")
    return TYPES[value]


def _number_format(value: Any) -> Any:
    """The fields of a number format with its type looked up."""
    if isinstance(value, dict) and "dtype" in value:
        try:
            return value | {"dtype": _number_type(value["dtype"])}
        except ValueError as error:
            raise ValueError(f".dtype: {error}") from error
    return value


def _possible(spec: QuantSpec) -> QuantSpec:
    """``spec``, if floating-point numbers have no fields that only integers have."""
    if spec.is_floating and not (spec.symmetric and not spec.narrow_range and spec.reduce_bits == 0):
        raise ValueError(
            f"{spec.dtype.name.lower()} is always symmetric, without narrow_range and reduce_bits"
        )
    return spec


def _scalar(value: Any) -> Any:
    """``value`` if it is a value that an attribute of a node may have."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"expected a number or a text, got {value!r}")
    return value


LARGEST = float(np.finfo(np.float32).max)
"""The largest finite number in float32, the type of scales."""


def _span(ends: tuple[float, float]) -> tuple[float, float]:
    """The ends of a range, if float32 can hold them and a grid with a zero can lie between them."""
    low, high = ends
    finite = all(abs(end) <= LARGEST for end in ends)
    if not (finite and low <= 0 <= high and np.float32(low) < np.float32(high)):
        raise ValueError(f"expected two finite numbers, low <= 0 <= high and low < high; got {list(ends)}")
    return ends


Range = Annotated[tuple[StrictFloat, StrictFloat], AfterValidator(_span)]
Count = Annotated[StrictInt, Field(ge=0)]
Size = Annotated[StrictInt, Field(ge=1)]
Scalar = Annotated[int | float | str, BeforeValidator(_scalar)]
NumberType = Annotated[ir.DataType, BeforeValidator(_number_type)]
NumberFormat = Annotated[QuantSpec, BeforeValidator(_number_format), AfterValidator(_possible)]
Names = frozenset[StrictStr]
NumberTypes = frozenset[NumberType]

_NO_MORE = ConfigDict(extra="forbid")
"""A file has no unknown fields."""


class Choice(Enum):
    """One of several values that a file writes by name; ``meaning`` explains it in the documentation."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> Choice:
        """``value`` is the spelling in a file."""
        member = object.__new__(cls)
        member._value_ = value
        member.meaning = meaning
        return member


def _member(kind: type[Choice]) -> BeforeValidator:
    """Accept a member of ``kind`` by its value."""

    def find(value: Any) -> Any:
        names = {member.value: member for member in kind}
        if isinstance(value, kind):
            return value
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"expected one of {', '.join(names)}; got {value!r}")
        return names[value]

    return BeforeValidator(find)


class Role(Choice):
    """When an operator is quantized."""

    ANCHOR = "anchor", "wherever it occurs, with its weights if it has some"
    LINK = "link", "only between quantized neighbours: alone it would pay for Q/DQ and gain nothing"
    RESIDUAL = (
        "residual",
        "an addition that the runtime fuses into the operator before it: only its other input is quantized",
    )


class Output(Choice):
    """The requirement of an integer kernel on the output of its operator."""

    QUANTIZED = "quantized", "Q/DQ on every output, which then is not a graph output"
    FREE = "free", "nothing: the kernel returns float, or integers if Q follows"
    ALL_OR_NONE = (
        "all-or-none",
        "Q/DQ for all its consumers or for none; and Q if what follows would be fused in float",
    )


class FloatInputs(Choice):
    """Which float inputs a link quantizes for the sake of the integers that it also reads, or gives."""

    NONE = "none", "none: all its inputs must be integers already"
    BROADCAST = "broadcast", "those that are broadcast to an integer input: few elements beside many"
    MOVED = "moved", "all, if it only moves values and no more elements are quantized than after it"
    ANY = "any", "any: their elements would be quantized after the operator anyway"


class BiasStyle(Choice):
    """How a bias is stored."""

    INT32 = "int32", "int32 with scale = input scale x weight scale"
    FLOAT = "float", "plain float"
    OWN = "own", "the type of the weights, with a scale of its own"


class Storage(Choice):
    """How quantized constants are stored in the file."""

    INTEGERS = "integers", "integers, then DequantizeLinear"
    REALS = "reals", "float numbers on the grid, then QuantizeLinear and DequantizeLinear"


@dataclass(frozen=True)
class OpRule:
    """How one operator type is quantized.

    Attributes:
        role: when it is quantized.
        output: what its output needs.
        per_channel: its weights may be quantized per channel.
        bias_add: the runtime fuses it and a following Add into one Gemm where it knows the shapes, and that
            Gemm needs its bias in int32.
        dynamic_weight: it is quantized even if its second operand is computed at run time.
        same_params: inputs and outputs share scale and zero point.
        inputs_follow: inputs without other consumers take the output's scale and zero point, so that
            the kernel has nothing to rescale.
        float_inputs: which inputs a link accepts in float.
        output_range: the levels of the output lie evenly in this range, whatever calibration saw: the
            first at its low end; its high end is one step above the last.
        attributes: values that the node's attributes must have (missing: ONNX's default).
        unknown_attributes: attributes that the node must not have, whatever their value: the runtime refuses
            the integer kernel with them.
        wrong_together: values of attributes that the integer kernel takes one by one, but not all together:
            it would compute something else.
        depthwise: the role of a depthwise convolution, if it differs. One with a single input and a single
            output channel counts as depthwise; it joins only integers that a node before it gives.
        blocked: its weights may be quantized per block where the node's attributes have these values
            (missing: they have); None: they may not.
        group_channels: the fewest input channels per group of a grouped convolution (depthwise ones
            aside) for which the integer kernel is not slower than float.
        on_integers: the runtime computes it on integers, but fuses no Q/DQ with it: it is written between Q
            and DQ.
        least_channels: the fewest output channels, and input channels per group, with which its kernel is
            not slower than float; of matrices the sizes of both axes. Depthwise convolutions have one.
        kernel_elements: the most elements of a window (a 5x5 kernel has 25) that it has a kernel for; None:
            any number.
        single_group: it has an integer kernel only without groups.
        channels: its integer kernel is faster if the number of input channels is a multiple of this: where
            it is the only consumer of a quantized graph input, channels of zeros are added.
        fused_in_float: operators that the runtime would fuse with it in float where they are its only
            consumers, and no Q follows both (for `Output.ALL_OR_NONE`). An Add that is a bias does no harm.
        sums_with: operators that such an addition is fused into (for `Role.RESIDUAL`).
        inputs: number format of its computed inputs, if it differs from that of all activations.
        dynamic_inputs: likewise where its second operand is computed at run time.
        bias: of an operator that is not in `onnxq.graph.operators.WEIGHTED`: the input that is stored as a
            bias, with the scales of the inputs 0 and 1.
    """

    role: Annotated[Role, _member(Role)]
    output: Annotated[Output, _member(Output)] = Output.QUANTIZED
    per_channel: StrictBool = True
    bias_add: StrictBool = False
    dynamic_weight: StrictBool = False
    same_params: StrictBool = False
    inputs_follow: StrictBool = False
    float_inputs: Annotated[FloatInputs, _member(FloatInputs)] = FloatInputs.NONE
    output_range: Range | None = None
    attributes: Mapping[str, Scalar] = field(default_factory=dict)
    unknown_attributes: Names = frozenset()
    wrong_together: Mapping[str, Scalar] = field(default_factory=dict)
    depthwise: Annotated[Role, _member(Role)] | None = None
    blocked: Mapping[str, Scalar] | None = None
    group_channels: Count = 0
    least_channels: Count = 0
    kernel_elements: Size | None = None
    single_group: StrictBool = False
    on_integers: StrictBool = False
    channels: Size = 1
    fused_in_float: Names = frozenset()
    sums_with: Names = frozenset()
    inputs: NumberFormat | None = None
    dynamic_inputs: NumberFormat | None = None
    bias: Count | None = None

    __pydantic_config__: ClassVar[ConfigDict] = _NO_MORE


@dataclass(frozen=True)
class Blocks:
    """Matrices of weights that are quantized per block, beside float activations.

    Attributes:
        types: their number formats, by type.
        sizes: the block sizes that are supported, in weights.
        whole: every block has the full size, the last one too.
        among_floats: the kernel is used only without Q/DQ directly before or after it; elsewhere
            weights are not quantized per block.
        unshared: the kernel is used only for weights and scales that no other node reads: each of the nodes
            that share weights gets a copy, as long as all copies together are smaller than float weights.
        format: the form in which mode weight-only writes them: ``dequantize`` or ``matmulnbits``.
        accuracy_level: the attribute of MatMulNBits: 4 computes with activations in 8 bits, 0 in float.
    """

    types: Mapping[NumberType, NumberFormat]
    sizes: frozenset[Size]
    whole: StrictBool = False
    among_floats: StrictBool = False
    unshared: StrictBool = False
    format: BlockFormat = "dequantize"
    accuracy_level: Count = 0

    __pydantic_config__: ClassVar[ConfigDict] = _NO_MORE


@dataclass(frozen=True)
class Ends:
    """Number formats of the first and the last operator with weights, where they differ.

    Attributes:
        activation: number format of their inputs.
        weight: number format of their weights; the axis follows from the operator.
    """

    activation: NumberFormat
    weight: NumberFormat

    __pydantic_config__: ClassVar[ConfigDict] = _NO_MORE


@dataclass(frozen=True)
class Target:
    """A runtime, as data.

    Attributes:
        name: the name that ``--target`` takes.
        about: one sentence about it, for the documentation.
        notes: what else a user should know, one or two sentences each.
        runtimes: names of the runtimes that can check a model for it.
        capabilities: the types of NVIDIA GPUs, by compute capability (SM86), that TensorRT builds the model
            for on a machine without a GPU.
        activation: number format of activations (always per tensor).
        weight: default number format of weights; the axis follows from the operator.
        per_channel_types: types of weights that may be quantized per channel; None: all.
        first_last_formats: formats of the first and last operators with weights; None: those of all others.
        shifted_weights: the runtime accepts weights with any zero point in models from elsewhere; here they
            are quantized as ``weight`` says.
        bias: how biases are stored.
        bias_types: types of biases that the runtime accepts in models from elsewhere.
        rules: operator type -> rule; every other operator is kept in float.
        transparent: operators that the runtime moves Q and DQ across: they get none, and run
            in the type of their neighbours. Quantized tensors with nothing else between them share
            parameters.
        no_shared_params: those of them whose inputs and outputs need not share parameters.
        activation_types: types that ``--activation`` accepts, for all nodes or in an override for some. Nodes
            of several widths may stand beside each other: ``--goal`` and ``--floor`` use the wider ones.
        weight_types: types that ``--weight`` accepts, with their number formats.
        blocks: what ``--block-size`` accepts; None: nothing.
        block_size: the default of ``--block-size``; None: no blocks.
        weight_cast: stored type of weights -> type that the integer kernels take, where it differs. A Cast
            before DequantizeLinear converts it, and a Sub takes zero points away, with which kernels may be
            slow; the runtime folds both when it loads the model: the file is small and the kernel an
            integer one. Weights in blocks need none.
        keep_float_weights: operators whose float weights and biases the runtime would quantize by itself
            where they stand between a per-tensor DQ and a Q: weights per tensor, biases to int32 with input
            scale x weight scale, which is coarse for few bits. A DQ before them repeats its scale for each
            channel, which keeps them in float; with `BiasStyle.FLOAT` also before quantized operators.
        fused_clips: how many consecutive Relu and Clip the runtime fuses with the operator before them:
            Q is placed after the last of them.
        quantize_outputs: graph outputs are quantized too, as with ``--quantize-outputs``.
        storage: how weights and other quantized constants are stored.
        unfuse_layernorm_add: the runtime fuses LayerNormalization with the addition before it into a kernel
            that is slower than the two: such an Add is written as Sum, which it does not fuse.
        join_float_readers: the runtime gives each reader of a DequantizeLinear one of its own, and so misses
            fusions of float nodes that read the same tensor (Gelu, LayerNormalization, SiLU): these read it
            through one DequantizeLinear and a Sum of one tensor.
        float_type: the type of what is not quantized; ``keep``: that of the given model.
        float_types: the float types that the runtime has kernels for.
        integer_tables: the runtime looks up rows of an embedding table in int8, with a scale for each row;
            else the table stays float, also beside the integers of a quantized weight with the same numbers.
    """

    name: StrictStr
    activation: NumberFormat
    weight: NumberFormat
    bias: Annotated[BiasStyle, _member(BiasStyle)]
    rules: Mapping[str, OpRule]
    activation_types: NumberTypes
    weight_types: Mapping[NumberType, NumberFormat]
    keep_float_weights: Names = frozenset()
    transparent: Names = frozenset()
    no_shared_params: Names = frozenset()
    blocks: Blocks | None = None
    block_size: Size | None = None
    weight_cast: Mapping[NumberType, NumberType] = field(default_factory=dict)
    about: StrictStr = ""
    notes: tuple[StrictStr, ...] = ()
    runtimes: tuple[StrictStr, ...] = ()
    capabilities: tuple[StrictStr, ...] = ()
    per_channel_types: NumberTypes | None = None
    first_last_formats: Ends | None = None
    fused_clips: Count = 2
    quantize_outputs: StrictBool = False
    storage: Annotated[Storage, _member(Storage)] = Storage.INTEGERS
    shifted_weights: StrictBool = False
    unfuse_layernorm_add: StrictBool = False
    join_float_readers: StrictBool = False
    integer_tables: StrictBool = False
    float_type: FloatType = "float32"
    float_types: frozenset[FloatType] = frozenset(("float32", "float16", "bfloat16"))
    bias_types: NumberTypes = frozenset({ir.DataType.FLOAT, ir.DataType.INT32})

    __pydantic_config__: ClassVar[ConfigDict] = _NO_MORE


U8 = QuantSpec(ir.DataType.UINT8, symmetric=False)
U16 = QuantSpec(ir.DataType.UINT16, symmetric=False)
S8 = QuantSpec(ir.DataType.INT8, symmetric=True)
S8_NARROW = replace(S8, narrow_range=True)
S8_OF_7_BITS = replace(S8, reduce_bits=1)
S8_POWER_OF_TWO = replace(S8, power_of_two=True)
S4 = QuantSpec(ir.DataType.INT4, symmetric=True)
E4M3 = QuantSpec(ir.DataType.FLOAT8E4M3FN, symmetric=True)
U4 = QuantSpec(ir.DataType.UINT4, symmetric=False)

AVERAGE_POOL = OpRule(
    Role.ANCHOR,
    unknown_attributes=frozenset({"dilations"}),
    wrong_together={"ceil_mode": 1, "count_include_pad": 1},
)
"""An average pool, as ONNX Runtime's integer kernel computes it, which also runs the models of other targets.

The kernel has no dilations. Where the output size is rounded up, it counts what lies beyond the padding too.
"""
