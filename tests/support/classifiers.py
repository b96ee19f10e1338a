"""A classifier as text, and models with random weights to plan."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir

from onnxq.graph.passes import simplify

SHAPES = {
    "w": (8, 4, 3, 3),
    "b": (8,),
    "w2": (8, 8, 3, 3),
    "w3": (8, 8, 3, 3),
    "fc": (3, 8),
    "fb": (3,),
    "m": (8, 8),
}


def model_of(body, inputs="float[N, 4, 8, 8] x", outputs="float[N, 3] y", constants=""):
    """A simplified model; the names in SHAPES are random weights."""
    rng = np.random.default_rng(0)
    weights = [
        f"float[{','.join(map(str, shape))}] {name} = {{{','.join(map(str, rng.normal(size=shape).round(3).flat))}}}"
        for name, shape in SHAPES.items()
    ]
    declared = ", ".join([*weights, constants] if constants else weights)
    text = f'<ir_version: 8, opset_import: ["": 17]> g ({inputs}) => ({outputs}) <{declared}> {{ {body} }}'
    return simplify(ir.from_proto(onnx.parser.parse_model(text)))


CLASSIFIER = """
    c = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    r = Relu (c)
    c2 = Conv <pads = [1, 1, 1, 1]> (r, w2)
    a = Add (c2, r)
    r2 = Relu (a)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    y = Gemm <transB = 1> (f, fc, fb)
"""
