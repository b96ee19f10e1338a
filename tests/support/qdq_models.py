"""Small Q/DQ models, right and wrong in one respect each, and what must be said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from graphs import parse

from calibrators.data.samples import Sample
from onnxq.targets.lookup import get_target
from onnxq.verify.subject import Subject

RNG = np.random.default_rng(3)

CHANNELS = 16

CONV = """g (float[1,16,8,8] x{inputs}) => (float[1,16,8,8] y) <{declared}> {{
    {before} {weights} {bias} {layer} {after}
}}"""

DECLARED = {
    "s": "float s",
    "z": "uint8 z",
    "w": "int8[16,16,1,1] w",
    "t": "float[16] t",
    "o": "int8[16] o",
    "u": "float u",
    "p": "uint8 p",
}

VALUES = {
    "s": 0.03,
    "z": 128,
    "w": RNG.integers(-100, 100, (16, 16, 1, 1)),
    "t": RNG.uniform(0.001, 0.01, 16),
    "o": 0,
    "u": 0.05,
    "p": 120,
}

PARTS = {
    "inputs": "",
    "before": "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z)",
    "weights": "v = DequantizeLinear <axis = 0> (w, t, o)",
    "bias": "",
    "layer": "c = Conv (d, v)",
    "after": "r = QuantizeLinear (c, u, p) y = DequantizeLinear (r, u, p)",
}

SIGNED = {"z": ("int8 z", 0), "p": ("int8 p", 0)}
"""What turns it into a model for TensorRT."""

NO_Q = {"layer": "y = Conv (d, v)", "after": "", "u": None, "p": None}
"""Nothing after the convolution, as TensorRT and OpenVINO like it."""

INT32_BIAS = {
    "bias": "k = DequantizeLinear <axis = 0> (b, m)",
    "layer": "c = Conv (d, v, k)",
    "b": ("int32[16] b", RNG.integers(-500, 500, 16)),
    "m": ("float[16] m", VALUES["s"] * VALUES["t"]),
}

PER_CHANNEL = {
    "before": "q = QuantizeLinear <axis = 1> (x, s, z) d = DequantizeLinear <axis = 1> (q, s, z)",
    "s": ("float[16] s", np.linspace(0.02, 0.04, CHANNELS)),
    "z": ("int8[16] z", 0),
}
RUN_TIME = {"inputs": ", float s", "s": None}
NO_ZERO_POINT = {"before": "q = QuantizeLinear (x, s) d = DequantizeLinear (q, s)", "z": None}
DATA_ONLY = {
    "weights": "",
    "v": ("float[16,16,1,1] v", VALUES["w"]),
    **dict.fromkeys("wto"),
}
WEIGHT_ONLY = {"before": "", "layer": "y = Conv (x, v)", "s": None, "z": None}
WRONG_AXIS = {"weights": "v = DequantizeLinear <axis = 1> (w, t, o)"}


def only(name, value, declared=None):
    kinds = {"s": "float s", "z": "int8 z", "t": "float[16] t", "o": "int8[16] o"}
    return {name: (declared or kinds[name], value)}


WRONG_FOR_TENSORRT = {
    "uint8": ([only("z", 0, "uint8 z")], "n_y: its input 0 is uint8", ""),
    "a zero point": (
        [only("z", 3)],
        "n_y: its input 0 is int8 with another zero point than 0, the only one",
        "n_q: shiftIsAllZeros",
    ),
    "a zero point of weights": (
        [only("o", [0] * 15 + [7])],
        "its weights are int8 with another zero point than 0",
        "n_v: shiftIsAllZeros",
    ),
    "uint8 weights": (
        [{"w": ("uint8[16,16,1,1] w", 7), "o": ("uint8[16] o", 0)}],
        "weights are uint8",
        "UINT8",
    ),
    "an int32 bias": (
        [INT32_BIAS, {"layer": "y = Conv (d, v, k)"}],
        "its bias is int32; tensorrt takes bfloat16, float, float16",
        "n_k: ",
    ),
    "a scale a channel": (
        [PER_CHANNEL],
        "n_y: its input 0 is quantized per channel",
        "n_y: its Conv runs in float on tensorrt: its data is quantized per channel",
    ),
    "a wrong axis": (
        [WRONG_AXIS],
        "scales along axis 1; output channels lie along axis 0",
        "n_y: its Conv runs in float on tensorrt: the scales of its weights",
    ),
    "data alone": ([DATA_ONLY], "n_y: its data is quantized, but its weights are not", None),
    "weights alone": ([WEIGHT_ONLY], "n_y: its weights are quantized, but its data is not", None),
    "a scale at run time": (
        [RUN_TIME],
        "n_q: its scale or zero point is computed at run time",
        "no engine was built",
    ),
    "no zero point": (
        [NO_ZERO_POINT],
        "n_q: it has no zero point, so it gives uint8, but tensorrt reads that",
        "",
    ),
    "a scale of 0": ([only("s", 0)], "n_q: its scale holds 0.0", "n_q: "),
    "a negative scale": (
        [only("s", -0.1)],
        "its scale holds -0.1",
        "Scale coefficients must all be positive",
    ),
    "a scale that is no number": ([only("s", np.nan)], "its scale holds nan", "Scale coefficients"),
    "an infinite scale": ([only("s", np.inf)], "its scale holds inf", ""),
    "a scale of weights of 0": ([only("t", [0.1] * 15 + [0])], "n_v: its scale holds 0.0", "n_v: "),
}
"""What is changed of a model that TensorRT takes -> what legality says, and what TensorRT itself does.

Empty: it computes something else without a word. None: both sides in float, which it builds.
"""


def conv(*changes: dict, opset: int = 13, check: bool = True) -> ir.Model:
    """A 1 x 1 convolution between Q/DQ for ONNX Runtime, changed.

    Each change maps a part of the text to another text, or a constant to its declaration and value; None
    takes it away.
    """
    declared, values, parts = dict(DECLARED), dict(VALUES), dict(PARTS)
    for name, change in ((n, c) for one in changes for n, c in one.items()):
        if name in PARTS:
            parts[name] = change
        elif change is None:
            del declared[name], values[name]
        else:
            declared[name], values[name] = change
    text = CONV.format(declared=", ".join(declared.values()), **parts)
    return named(parse(text, opset=opset, check=check, **values))


def named(model: ir.Model) -> ir.Model:
    """Every node called by its first output, with a prefix that OpenVINO needs to tell both apart."""
    for node in model.graph:
        node.name = f"n_{node.outputs[0].name}"
    return model


def subject(model: ir.Model, target: str, path: Path | None = None, samples: int = 0) -> Subject:
    """What checkers take; in a file if there is a path."""
    if path is not None:
        ir.save(model, path)
    return Subject(path or "", model, get_target(target), [_sample(model, n) for n in range(samples)])


def _sample(model: ir.Model, number: int) -> Sample:
    rng = np.random.default_rng(number)
    shapes = {
        value.name: [d if isinstance(d, int) else 2 for d in value.shape] for value in model.graph.inputs
    }
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return Sample(f"sample {number}", feeds)


def messages(verdict, severity: str = "error") -> str:
    """All findings of a severity, in one text."""
    return "\n".join(str(finding) for finding in verdict.findings if finding.severity == severity)
