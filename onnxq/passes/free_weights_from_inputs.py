"""Initializers that are listed as graph inputs too become plain constants.

Up to IR version 3 every weight had to be listed so; later it means a default that a caller may replace.
A model whose weights are replaced at run time cannot be quantized ahead of time, so they are taken as
the constants they nearly always are, with a warning where it could matter.
"""

from __future__ import annotations

import logging

import onnx_ir as ir

logger = logging.getLogger(__name__)

LISTED_BY_RULE = 3
"""The last IR version in which weights are inputs because the format demands it."""


class FreeWeightsFromInputsPass(ir.passes.InPlacePass):
    """The graph inputs that have a value in the file stop being inputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Drop them from the main graph's inputs; the inputs of bodies are part of their operators."""
        listed = [value for value in model.graph.inputs if value.is_initializer()]
        if listed and model.ir_version > LISTED_BY_RULE:
            logger.warning(
                "%d inputs have default values (%s, ...): they become constants and can be given no longer.",
                len(listed),
                listed[0].name,
            )
        for value in listed:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=bool(listed))
