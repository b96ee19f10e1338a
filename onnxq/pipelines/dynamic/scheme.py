"""Choose the form of dynamic quantization for a target: only some runtimes compute ranges at run time."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.errors import TargetError
from onnxq.core.plan import QuantSpec
from onnxq.targets import TARGETS
from onnxq.targets.target import Target


class WeightForm(Enum):
    """The form of weights, and of the operators that read them, in the file."""

    INTEGERS = "operators on integers, whose data is quantized by operators before them"
    WEIGHT_ONLY = "int8 weights, unpacked before float operators: the runtime does what it likes with them"
    FLOAT16 = "float16 weights, unpacked before float operators"


FORMS = {"onnxruntime": WeightForm.INTEGERS, "openvino": WeightForm.WEIGHT_ONLY}
"""Runtime -> the form that it runs well. OpenVINO itself quantizes data that meets compressed weights."""


@dataclass(frozen=True)
class DynamicScheme:
    """The requested quantization, and its form for the target.

    Attributes:
        target: the deployment target.
        config: the options.
        form: the form in which weights are written.
        weight: the number format of weights, without the axis; not used for float16.
    """

    target: Target
    config: QuantConfig
    form: WeightForm
    weight: QuantSpec

    def axis(self, axis: int | None) -> int | None:
        """Return ``axis``; None if the user or the target requires per-tensor scales."""
        types = self.target.per_channel_types
        able = types is None or self.weight.dtype in types
        return axis if able and not self.config.per_tensor else None


def find_scheme(target: Target, config: QuantConfig) -> DynamicScheme:
    """Choose the scheme for ``target``.

    Raises:
        TargetError: the target's runtime needs the ranges in the model.
    """
    forms = [FORMS[name] for name in target.runtimes if name in FORMS]
    weight = target.weight_types.get(ir.DataType.INT8, target.weight)
    if config.weight == "float16":
        return DynamicScheme(target, config, WeightForm.FLOAT16, weight)
    if not forms:
        able = [name for name, other in TARGETS.items() if FORMS.keys() & set(other.runtimes)]
        raise TargetError(
            f"target {target.name} needs the ranges of activations in the model, so it has no dynamic "
            "quantization: use --mode static with data, or --weight float16, which every target takes; "
            f"targets with dynamic quantization: {', '.join(able)}"
        )
    return DynamicScheme(target, config, forms[0], weight)
