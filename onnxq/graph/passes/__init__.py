"""One clean float graph, whatever the exporter wrote: an ordered list of passes, one a file.

A pass is an `ir.passes.InPlacePass`: ``requires → call → ensures``, and says whether it changed anything.
It never changes what the model computes, works in the bodies of If and Loop, keeps names where it can,
and leaves the graph alone where its pattern does not match.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET
from onnxq.graph.passes.canonical import ReduceMeanToPoolPass, ReshapeToFlattenPass, SumToAddPass
from onnxq.graph.passes.constants import (
    DeduplicateInitializersPass,
    FoldConstantsPass,
    FreeWeightsFromInputsPass,
)
from onnxq.graph.passes.fold_affine import (
    FoldArithmeticPass,
    FoldBatchNormForwardPass,
    FoldBatchNormPass,
    FoldScalarsForwardPass,
)
from onnxq.graph.passes.fold_clip import HardSigmoidToClipPass, ScaleBeforeClipPass
from onnxq.graph.passes.fuse_pad import FusePadPass
from onnxq.graph.passes.gemm import FoldGemmScalarsPass, MatMulAddToGemmPass
from onnxq.graph.passes.hard_activations import FuseHardSigmoidPass, FuseHardSwishPass, has_hard_swish
from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.passes.opset import OPSET_OF_HARD_SWISH, RaiseOpsetPass
from onnxq.graph.passes.redundancy import EliminateCommonSubexpressionsPass, RemoveIdentityPass
from onnxq.graph.passes.shapes import ForgetStaleShapesPass, InferForeignTypesPass, InferShapesPass

CONSTANTS: tuple[ir.passes.PassBase, ...] = (
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.LiftSubgraphInitializersToMainGraphPass(),
)
"""To one way to write constants: initializers of the main graph."""

OLD: tuple[ir.passes.PassBase, ...] = (
    common.InlinePass(),
    common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    common.ClearMetadataAndDocStringPass(),  # stack traces of the exporter; the model's own metadata stays
    FreeWeightsFromInputsPass(),
    *CONSTANTS,
    UniqueNamesPass(),
)
"""To one graph. Once; then its opset is raised."""

NEW: tuple[ir.passes.PassBase, ...] = (
    *CONSTANTS,
    UniqueNamesPass(),
    ForgetStaleShapesPass(),
    InferForeignTypesPass(),
)
"""What raising the opset may have left to do. Once."""

PLAIN: tuple[ir.passes.PassBase, ...] = (
    InferShapesPass(),
    FoldConstantsPass(),
    *CONSTANTS,
    RemoveIdentityPass(),
)
"""To where patterns can be recognized: shapes are known, constants are constants."""

SIMPLIFY: tuple[ir.passes.PassBase, ...] = (
    *PLAIN,
    SumToAddPass(),
    ReduceMeanToPoolPass(),
    ReshapeToFlattenPass(),
    FoldGemmScalarsPass(),
    MatMulAddToGemmPass(),
    FusePadPass(),
    FuseHardSwishPass(),
    FuseHardSigmoidPass(),
    FoldBatchNormPass(),
    FoldArithmeticPass(),
    HardSigmoidToClipPass(),
    ScaleBeforeClipPass(),
    FoldBatchNormForwardPass(),
    FoldScalarsForwardPass(),
    common.RemoveUnusedNodesPass(),
    DeduplicateInitializersPass(),
    EliminateCommonSubexpressionsPass(),
    UniqueNamesPass(),
)
"""To the canonical forms, again and again until nothing changes: one rewrite makes room for another."""

MOST_ROUNDS = 20
"""Every round takes something away, so this is never reached; it only makes the loop finite."""


def simplify(model: ir.Model, opset: int = OPSET) -> ir.Model:
    """A cleaned copy of the model that computes the same; the caller's model is not changed.

    Args:
        model: what to clean.
        opset: the lowest that will do.

    Raises:
        ModelError: the opset cannot be raised, or the model is not consistent.
    """
    copy = model.clone()
    try:
        ir.passes.Sequential(*OLD)(copy)
        _raise(copy, opset)
        ir.passes.PassManager(SIMPLIFY, steps=MOST_ROUNDS, early_stop=True)(copy)
    except (ir.passes.PassError, ir.passes.InvariantError) as e:
        raise _model_error(e) from e
    return copy


def _raise(model: ir.Model, opset: int) -> None:
    """The opset to what is asked for, and on to where all that the model computes has a name."""
    ir.passes.Sequential(RaiseOpsetPass(opset), *NEW)(model)
    if model.graph.opset_imports[""] < OPSET_OF_HARD_SWISH:
        ir.passes.PassManager(PLAIN, steps=MOST_ROUNDS, early_stop=True)(model)
        if has_hard_swish(model):
            ir.passes.Sequential(RaiseOpsetPass(OPSET_OF_HARD_SWISH), *NEW)(model)


def _model_error(error: BaseException) -> ModelError:
    """What stopped a pass, without the layers that the pass machinery wraps around it."""
    cause = error
    while cause.__cause__ is not None and not isinstance(cause, ModelError):
        cause = cause.__cause__
    return cause if isinstance(cause, ModelError) else ModelError(f"the model cannot be simplified: {cause}")
