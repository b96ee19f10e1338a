"""Small Q/DQ models, right and wrong in one respect each, and what must be said of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from graphs import parse

from calibrators.samples import Sample
from onnxq.targets import get_target
from onnxq.verify import Subject

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
"""Nothing behind the convolution, as TensorRT and OpenVINO like it."""

INT32_BIAS = {
    "bias": "k = DequantizeLinear <axis = 0> (b, m)",
    "layer": "c = Conv (d, v, k)",
    "b": ("int32[16] b", RNG.integers(-500, 500, 16)),
    "m": ("float[16] m", VALUES["s"] * VALUES["t"]),
}


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
