"""Quantize the matrices of a language model with the peer, `onnxruntime.quantization`.

``python scripts/peer_language.py MODEL OUTPUT {rtn,symmetric,hqq,mixed}``: 4 bits in blocks of 32, rounded to
nearest with and without zero points, or half-quadratic. ``mixed`` is the rule of thumb of onnxruntime-genai's
model builder: the first and the last eighth of the layers and every third one get 8 bits in the projections
of query, key and value and in the one that goes down.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

import onnx
from onnxruntime.quantization.matmul_nbits_quantizer import (
    HQQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)

BLOCK = 32
PER_LAYER, RAISED = 7, (0, 1, 2, 6)
"""Products of a layer (query, key, value, out, gate, up, down), and those that get 8 bits."""


def raised(names: Sequence[str]) -> list[str]:
    """List the products that the rule of thumb gives 8 bits.

    Args:
        names: the products of all layers, in order.
    """
    layers = len(names) // PER_LAYER
    chosen = [
        i for i in range(layers) if i < layers / 8 or i >= 7 * layers / 8 or (i - round(layers / 8)) % 3 == 2
    ]
    return [names[PER_LAYER * layer + place] for layer in chosen for place in RAISED]


def main() -> None:
    """Quantize as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("output")
    parser.add_argument("way", choices=("rtn", "symmetric", "hqq", "mixed"))
    given = parser.parse_args()
    logging.disable(logging.INFO)
    model = onnx.load(given.model)
    constants = {tensor.name for tensor in model.graph.initializer}
    names = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in constants]
    eight = raised(names) if given.way == "mixed" else []
    options = {"block_size": BLOCK, "is_symmetric": given.way == "symmetric", "accuracy_level": 4}
    if given.way == "hqq":
        options["algo_config"] = HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4)
    four = MatMulNBitsQuantizer(model, bits=4, nodes_to_exclude=eight, **options)
    four.process()
    if eight:
        rest = MatMulNBitsQuantizer(four.model.model, bits=8, nodes_to_include=eight, **options)
        rest.process()
        four = rest
    four.model.save_model_to_file(given.output, use_external_data_format=True)


if __name__ == "__main__":
    main()
