"""One clean float graph, whatever the exporter wrote: an ordered list of passes, one a file.

A pass is an `ir.passes.InPlacePass`: ``requires → call → ensures``, and says whether it changed anything.
It never changes what the model computes, works in the bodies of If and Loop, keeps names where it can,
and leaves the graph alone where its pattern does not match.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.errors import ModelError
from onnxq.passes.deduplicate_initializers import DeduplicateInitializersPass
from onnxq.passes.eliminate_common_subexpressions import EliminateCommonSubexpressionsPass
from onnxq.passes.fold_arithmetic import FoldArithmeticPass
from onnxq.passes.fold_batchnorm import FoldBatchNormPass
from onnxq.passes.fold_batchnorm_forward import FoldBatchNormForwardPass
from onnxq.passes.fold_constants import FoldConstantsPass
from onnxq.passes.fold_gemm_scalars import FoldGemmScalarsPass
from onnxq.passes.fold_scalars_forward import FoldScalarsForwardPass
from onnxq.passes.forget_stale_shapes import ForgetStaleShapesPass
from onnxq.passes.free_weights_from_inputs import FreeWeightsFromInputsPass
from onnxq.passes.fuse_hard_sigmoid import FuseHardSigmoidPass
from onnxq.passes.fuse_hard_swish import FuseHardSwishPass, has_hard_swish
from onnxq.passes.fuse_pad import FusePadPass
from onnxq.passes.hard_sigmoid_to_clip import HardSigmoidToClipPass
from onnxq.passes.infer_foreign_types import InferForeignTypesPass
from onnxq.passes.infer_shapes import InferShapesPass
from onnxq.passes.matmul_add_to_gemm import MatMulAddToGemmPass
from onnxq.passes.raise_opset import OPSET_OF_HARD_SWISH, RaiseOpsetPass
from onnxq.passes.reduce_mean_to_pool import ReduceMeanToPoolPass
from onnxq.passes.remove_identity import RemoveIdentityPass
from onnxq.passes.reshape_to_flatten import ReshapeToFlattenPass
from onnxq.passes.scale_before_clip import ScaleBeforeClipPass
from onnxq.passes.sum_to_add import SumToAddPass
from onnxq.passes.unique_names import UniqueNamesPass
from onnxq.plan import OPSET

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
