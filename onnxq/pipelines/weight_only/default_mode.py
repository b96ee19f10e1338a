"""The mode of a quantization whose options do not name one, but request weights in blocks."""

from __future__ import annotations

import logging
import os

import onnx_ir as ir

from onnxq.core.config import QuantConfig
from onnxq.core.errors import ConfigError, TargetError
from onnxq.graph.files import load
from onnxq.graph.nodes import all_nodes
from onnxq.graph.operators import SUMMED_AXIS, WEIGHTED
from onnxq.pipelines.weight_only.block_scheme import find_block_scheme
from onnxq.targets.lookup import get_target

logger = logging.getLogger(__name__)


def with_mode(model: str | os.PathLike[str], config: QuantConfig) -> QuantConfig:
    """Choose mode weight-only where ``weight`` or ``block_size`` leave all activations in float anyway.

    That is so where the target takes the weights in blocks only, or where all layers of the model are
    products with matrices. A mode that is given stays; so does static if another option needs it.

    Args:
        model: path of the model.
        config: the options.

    Raises:
        ModelError: the model cannot be read.
        TargetError: the target is unknown.
    """
    if "mode" in config.model_fields_set or (config.weight is None and config.block_size is None):
        return config
    target = get_target(config.target)
    dtype = ir.DataType[config.weight.upper()] if config.weight else target.weight.dtype
    is_whole = dtype in target.weight_types
    if target.blocks is None or (is_whole and config.block_size is None):
        return config
    try:
        chosen = config.changed(mode="weight-only")
        find_block_scheme(target, chosen)
    except (ConfigError, TargetError):
        return config
    if is_whole and _has_other_layers(model):
        return config
    logger.warning(
        "mode weight-only is used, because weights in blocks leave activations in float (--mode static "
        "calibrates the rest)"
    )
    return chosen


def _has_other_layers(model: str | os.PathLike[str]) -> bool:
    """Whether a model has layers that are no products with matrices, such as convolutions."""
    graph = load(model)
    nodes = [*all_nodes(graph), *(node for function in graph.functions.values() for node in function)]
    return any(node.op_type in WEIGHTED and node.op_type not in SUMMED_AXIS for node in nodes)
