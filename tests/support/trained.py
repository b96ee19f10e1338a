"""Real networks with weights that are fitted, and pictures for them."""

import numpy as np
import onnx_ir as ir
from graphs import op_counts

from calibrators.data.samples import input_specs
from calibrators.data.synthetic import synthetic_samples
from onnxq.graph.nodes import add_initializer


def picture(model):
    inputs = input_specs(model)
    return dict(next(iter(synthetic_samples(model, inputs, 1, 0))).feeds)


# --- the architectures that onnx ships ------------------------------------------------------------

HIDDEN = {4096: 64}
"""The fully connected layers of the largest ones, which would take most of the time, made narrow."""


def trained(path):
    """The architecture with weights as training leaves them; the file holds one value throughout."""
    model = ir.load(path)
    narrow = HIDDEN if op_counts(model).get("Gemm", 0) > 1 else {}
    rng = np.random.default_rng(0)
    for node in [n for n in model.graph if n.op_type == "ConstantOfShape"]:
        shape = [narrow.get(int(d), int(d)) for d in node.inputs[0].const_value.numpy()]
        output = node.outputs[0]
        array = weights(rng, shape, output)
        output.replace_all_uses_with(add_initializer(model, f"{output.name}_trained", array))
        model.graph.remove(node, safe=True)
    return model


def weights(rng, shape, value):
    """He's initialization for matrices and kernels; vectors near one where they scale, near zero where they shift."""
    if len(shape) > 1:
        return rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
    use = value.uses()[0]
    while use.node.op_type == "Unsqueeze":
        use = use.node.outputs[0].uses()[0]
    scales = (use.node.op_type, use.idx) in {("BatchNormalization", 1), ("BatchNormalization", 4), ("Mul", 1)}
    return (scales + 0.1 * rng.standard_normal(shape)).astype(np.float32)
