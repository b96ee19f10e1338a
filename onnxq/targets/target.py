"""A deployment target as a table of rules, and the number formats that several targets share.

The shape of a deployment target: a table of rules, no code.

The number formats that several targets have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

import onnx_ir as ir

from onnxq.core.plan import QuantSpec


class Role(Enum):
    """When an operator is quantized."""

    ANCHOR = "wherever it stands, with its weights if it has some"
    LINK = "only between quantized neighbours: alone it would pay for Q/DQ and gain nothing"
    RESIDUAL = "a sum that the runtime fuses into the operator before it: only its other input is quantized"


class Output(Enum):
    """What must stand on an operator's output for the integer kernel to be used."""

    QUANTIZED = "Q/DQ on every output, which then is not a graph output"
    FREE = "nothing: the kernel gives float, or integers if Q follows"
    ALL_OR_NONE = "Q/DQ for all its readers or for none; and Q if what follows would be fused in float"


class FloatInputs(Enum):
    """Which float inputs a link quantizes for the sake of the integers that it also reads."""

    NONE = "none: all its inputs must be integers already"
    BROADCAST = "those that are repeated to fit an integer input: few elements beside many"
    ANY = "any: their elements would be quantized behind the operator anyway"


@dataclass(frozen=True)
class OpRule:
    """How one operator type is quantized.

    Attributes:
        role: when.
        output: what its output needs.
        per_channel: its weights may have a scale a channel.
        bias_add: the runtime makes one Gemm of it and an Add behind it where it knows the shapes, and that
            Gemm needs its bias in int32.
        dynamic_weight: it is quantized even if its second operand is computed at run time.
        same_params: inputs and outputs share scale and zero point.
        inputs_follow: inputs that nobody else reads take the output's scale and zero point, so that
            the kernel has nothing to rescale.
        float_inputs: which inputs a link takes in float.
        output_range: whatever calibration saw, the levels of the output lie evenly in this range, the
            first at its low end; its high end is one step above the last.
        attributes: values that the node's attributes must have (missing: ONNX's default).
        depthwise: the role of a depthwise convolution, if it is another one.
        blocked: its weights may have a scale a block where the node's attributes have these values
            (missing: they have); None: they may not.
        group_channels: input channels that each group of a grouped convolution must have (depthwise
            ones aside): below, the integer kernel is slower than float.
        single_group: it has an integer kernel only without groups.
        channels: its integer kernel is faster with a multiple of so many input channels: where it alone reads
            the graph's input in integers, zeros are added to fill them up.
        fused_in_float: what the runtime would fuse with it in float where it alone reads its output, and
            no Q stands behind both (for `Output.ALL_OR_NONE`). An Add that is a bias does no harm.
        sums_with: operators that such a sum is fused into (for `Role.RESIDUAL`).
        inputs: number format of its computed inputs, if not that of all activations.
        dynamic_inputs: the same where its second operand is computed at run time.
        bias: of an operator that is none of `onnxq.graph.operators.WEIGHTED`: the input that is stored as a
            bias, with the scales of the inputs 0 and 1.
    """

    role: Role
    output: Output = Output.QUANTIZED
    per_channel: bool = True
    bias_add: bool = False
    dynamic_weight: bool = False
    same_params: bool = False
    inputs_follow: bool = False
    float_inputs: FloatInputs = FloatInputs.NONE
    output_range: tuple[float, float] | None = None
    attributes: Mapping[str, int | float | str] = field(default_factory=dict)
    depthwise: Role | None = None
    blocked: Mapping[str, int | float | str] | None = None
    group_channels: int = 0
    single_group: bool = False
    channels: int = 1
    fused_in_float: frozenset[str] = frozenset()
    sums_with: frozenset[str] = frozenset()
    inputs: QuantSpec | None = None
    dynamic_inputs: QuantSpec | None = None
    bias: int | None = None


class BiasStyle(Enum):
    """How a bias is stored."""

    INT32 = "int32 with scale = input scale x weight scale"
    FLOAT = "plain float"
    OWN = "the type of the weights, with a scale of its own"


class Storage(Enum):
    """How quantized constants are stored in the file."""

    INTEGERS = "integers, then DequantizeLinear"
    REALS = "float numbers on the grid, then QuantizeLinear and DequantizeLinear"


@dataclass(frozen=True)
class Blocks:
    """Matrices of weights with a scale a block, beside float activations.

    Attributes:
        types: their number formats.
        sizes: how many weights may share a scale.
        whole: no block may be shorter than the others.
        among_floats: the kernel is there only where neither Q/DQ stand before nor behind it; elsewhere
            weights are not cut.
    """

    types: Mapping[ir.DataType, QuantSpec]
    sizes: frozenset[int]
    whole: bool = False
    among_floats: bool = False


@dataclass(frozen=True)
class Ends:
    """Number formats of the first and the last operator with weights, where they are others.

    Attributes:
        activation: of their inputs.
        weight: of their weights; the axis follows from the operator.
    """

    activation: QuantSpec
    weight: QuantSpec


@dataclass(frozen=True)
class Target:
    """A runtime, as data.

    Attributes:
        name: what ``--target`` takes.
        about: what it is, in one sentence, for the documentation.
        notes: what else one should know, a sentence or two each.
        runtimes: the runtimes, by name, that can tell what they make of such a model.
        activation: number format of activations (always per tensor).
        weight: number format of weights if nobody asks for another; the axis follows from the operator.
        per_channel_types: types of weights that may have a scale a channel; None: all.
        ends: formats of the first and last operators with weights; None: those of all others.
        shifted_weights: the runtime takes weights with any zero point, from others; ours are as ``weight``
            says.
        bias: how biases are stored.
        bias_types: types of biases that the runtime takes, also from others; ours are as ``bias`` says.
        rules: operator type -> rule; every other operator stays float.
        transparent: operators that the runtime moves Q and DQ across by itself: they get none, and run
            in the type of their neighbours. Quantized tensors with nothing else between them share
            parameters.
        unequal: those of them whose inputs and outputs need not share parameters.
        activation_types: what ``--activation`` may ask for.
        weight_types: what ``--weight`` may ask for, and the number formats that it then gets.
        blocks: what it may ask for together with ``--block-size``; None: nothing.
        unpacked: type of stored weights -> the type that kernels take, where they take not that one. A
            Cast between them and DequantizeLinear makes it, and a Sub takes zero points away, with which
            kernels may be slow; the runtime folds them when it loads: the file is small and the kernel an
            integer one. Weights in blocks need none.
        guarded: operators whose float weights and biases the runtime quantizes by itself where they stand
            between a per-tensor DQ and a Q: weights per tensor, biases to int32 with input scale x weight
            scale, which is coarse for few bits. A DQ in front of them repeats its scale for each channel,
            which keeps them float; with `BiasStyle.FLOAT` also in front of quantized operators.
        fused_clips: so many Relu and Clip, one behind the other, are fused with the operator before them:
            Q stands behind the last of them.
        quantize_outputs: tensors that leave the graph are quantized too, as with ``--quantize-outputs``.
        storage: how weights and other quantized constants are stored.
        parts_norms: a LayerNormalization that the runtime has fused with the sum in front of it is slower
            than the two: such an Add is written as Sum, which it does not fuse.
    """

    name: str
    activation: QuantSpec
    weight: QuantSpec
    bias: BiasStyle
    rules: Mapping[str, OpRule]
    activation_types: frozenset[ir.DataType]
    weight_types: Mapping[ir.DataType, QuantSpec]
    keep_float_weights: frozenset[str] = frozenset()
    transparent: frozenset[str] = frozenset()
    no_shared_params: frozenset[str] = frozenset()
    blocks: Blocks | None = None
    weight_cast: Mapping[ir.DataType, ir.DataType] = field(default_factory=dict)
    about: str = ""
    notes: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    per_channel_types: frozenset[ir.DataType] | None = None
    first_last_formats: Ends | None = None
    fused_clips: int = 2
    quantize_outputs: bool = False
    storage: Storage = Storage.INTEGERS
    shifted_weights: bool = False
    unfuse_layernorm_add: bool = False
    bias_types: frozenset[ir.DataType] = frozenset({ir.DataType.FLOAT, ir.DataType.INT32})


U8 = QuantSpec(ir.DataType.UINT8, symmetric=False)


U16 = QuantSpec(ir.DataType.UINT16, symmetric=False)


S8 = QuantSpec(ir.DataType.INT8, symmetric=True)


S8_NARROW = replace(S8, narrow_range=True)


S8_OF_7_BITS = replace(S8, reduce_bits=1)


S8_POWER_OF_TWO = replace(S8, power_of_two=True)


S4 = QuantSpec(ir.DataType.INT4, symmetric=True)


U4 = QuantSpec(ir.DataType.UINT4, symmetric=False)
