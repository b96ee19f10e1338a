"""Simplify a float model to one clean graph, whatever the exporter wrote, by an ordered list of passes.

A pass is an `ir.passes.InPlacePass`: ``requires → call → ensures``. It reports whether it changed anything.
It never changes what the model computes, also works in the bodies of If and Loop, and keeps names where it
can. Where its pattern does not match, it leaves the graph unchanged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir
from onnx_ir.passes import common

from onnxq.core.errors import ModelError
from onnxq.core.plan import OPSET
from onnxq.graph.half_precision.widen import computes_in_half, needs_double, use_float32
from onnxq.graph.passes.canonical import (
    PlainAveragePoolPass,
    ReduceMeanToPoolPass,
    ReshapeToFlattenPass,
    StackOfOneToMatrixPass,
    SumToAddPass,
)
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
from onnxq.graph.passes.fold_clip import ClampToClipPass, HardSigmoidToClipPass, ScaleBeforeClipPass
from onnxq.graph.passes.fuse_pad import FusePadPass
from onnxq.graph.passes.gemm import FoldGemmScalarsPass, MatMulAddToGemmPass
from onnxq.graph.passes.hard_activations import FuseHardSigmoidPass, FuseHardSwishPass, has_hard_swish
from onnxq.graph.passes.leftovers.einsum import EinsumToMatMulPass
from onnxq.graph.passes.leftovers.inverse_roots import DivideByRootPass
from onnxq.graph.passes.leftovers.runtime_fusions import UnfuseRuntimeFusionsPass
from onnxq.graph.passes.leftovers.training_mode import InferenceModePass
from onnxq.graph.passes.names import UniqueNamesPass
from onnxq.graph.passes.opset import OPSET_OF_HARD_SWISH, RaiseOpsetPass
from onnxq.graph.passes.redundancy import (
    EliminateCommonSubexpressionsPass,
    FreeLoopConstantsPass,
    RemoveIdentityPass,
    RemoveUnusedPass,
)
from onnxq.graph.passes.shapes import ForgetStaleShapesPass, InferForeignTypesPass, InferShapesPass

logger = logging.getLogger(__name__)

CONSTANTS: tuple[ir.passes.PassBase, ...] = (
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
    common.LiftSubgraphInitializersToMainGraphPass(),
)
"""Turns all constants into initializers of the main graph."""

OLD: tuple[ir.passes.PassBase, ...] = (
    common.InlinePass(),
    common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    common.ClearMetadataAndDocStringPass(),  # the exporter's stack traces; the model's own metadata is kept
    FreeWeightsFromInputsPass(),
    *CONSTANTS,
    InferenceModePass(),
    UniqueNamesPass(),
)
"""Makes the model one graph. Runs once, before the opset is raised."""

TYPED: tuple[ir.passes.PassBase, ...] = (
    common.InlinePass(),
    common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
    UniqueNamesPass(),
    InferForeignTypesPass(),
    InferShapesPass(),
)
"""Infers types and shapes, without changing nodes."""

NEW: tuple[ir.passes.PassBase, ...] = (
    *CONSTANTS,
    UnfuseRuntimeFusionsPass(),
    UniqueNamesPass(),
    ForgetStaleShapesPass(),
    InferForeignTypesPass(),
    FoldConstantsPass(),
)
"""Cleans up after the opset was raised. Runs once."""

PLAIN: tuple[ir.passes.PassBase, ...] = (
    InferShapesPass(),
    FoldConstantsPass(),
    *CONSTANTS,
    RemoveIdentityPass(),
)
"""Makes patterns recognizable: shapes are inferred, constants are folded."""

SIMPLIFY: tuple[ir.passes.PassBase, ...] = (
    *PLAIN,
    FreeLoopConstantsPass(),
    SumToAddPass(),
    ReduceMeanToPoolPass(),
    PlainAveragePoolPass(),
    ReshapeToFlattenPass(),
    EinsumToMatMulPass(),
    StackOfOneToMatrixPass(),
    FoldGemmScalarsPass(),
    MatMulAddToGemmPass(),
    FusePadPass(),
    FuseHardSwishPass(),
    FuseHardSigmoidPass(),
    DivideByRootPass(),
    ClampToClipPass(),
    FoldBatchNormPass(),
    FoldArithmeticPass(),
    HardSigmoidToClipPass(),
    ScaleBeforeClipPass(),
    FoldBatchNormForwardPass(),
    FoldScalarsForwardPass(),
    RemoveUnusedPass(),
    DeduplicateInitializersPass(),
    EliminateCommonSubexpressionsPass(),
    UniqueNamesPass(),
)
"""Rewrites to canonical forms. Repeated until nothing changes, since one rewrite may enable another."""

MOST_ROUNDS = 20
"""Limit that makes the loop finite. It is not reached, because every round removes something."""


def simplify(model: ir.Model, opset: int = OPSET) -> ir.Model:
    """Make a simplified copy of the model that computes the same; the caller's model is not changed.

    What the model computes in float16 or bfloat16 becomes float32, which is more exact, with a warning.

    Args:
        model: the model.
        opset: the lowest acceptable opset.

    Raises:
        ModelError: the opset cannot be raised, or the model is inconsistent.
    """
    copy = model.clone()
    with _model_errors():
        ir.passes.Sequential(*OLD)(copy)
        _raise(copy, opset)
        _widen(copy)
        ir.passes.PassManager(SIMPLIFY, steps=MOST_ROUNDS, early_stop=True)(copy)
    return copy


def single(model: ir.Model, opset: int = OPSET) -> ir.Model:
    """Make a copy of the model that is one graph, without functions; no weight is read.

    Nodes stay as they are, but for normalizations and Einsum, which get the form that runtimes know.

    Args:
        model: the model.
        opset: the lowest acceptable opset.

    Raises:
        ModelError: the opset cannot be raised, or the model is inconsistent.
    """
    copy = model.clone()
    with _model_errors():
        ir.passes.Sequential(
            *OLD,
            RaiseOpsetPass(opset),
            *CONSTANTS,
            FreeLoopConstantsPass(),
            EinsumToMatMulPass(),
            DivideByRootPass(),
            UniqueNamesPass(),
        )(copy)
    return copy


def plain(model: ir.Model, opset: int | None = None) -> ir.Model:
    """Make a copy of the model that is one graph with types and folded constants, and otherwise as it was.

    Q and DQ stay where they are.

    Args:
        model: the model.
        opset: the lowest acceptable opset; None: the one that it has.

    Raises:
        ModelError: the opset cannot be raised, or the model is inconsistent.
    """
    copy = model.clone()
    with _model_errors():
        ir.passes.Sequential(*OLD)(copy)
        if opset is not None:
            _raise(copy, opset)
        ir.passes.PassManager(PLAIN, steps=MOST_ROUNDS, early_stop=True)(copy)
    return copy


def typed(model: ir.Model) -> ir.Model:
    """Make a copy of the model without functions, whose tensors have types; its nodes stay as they are.

    Raises:
        ModelError: the model is inconsistent.
    """
    copy = model.clone()
    with _model_errors():
        ir.passes.Sequential(*TYPED)(copy)
    return copy


def _raise(model: ir.Model, opset: int) -> None:
    """Raise the opset as requested, and further to the opset of HardSwish if the model computes that."""
    ir.passes.Sequential(RaiseOpsetPass(opset), *NEW)(model)
    if model.graph.opset_imports[""] < OPSET_OF_HARD_SWISH:
        ir.passes.PassManager(PLAIN, steps=MOST_ROUNDS, early_stop=True)(model)
        if has_hard_swish(model):
            ir.passes.Sequential(RaiseOpsetPass(OPSET_OF_HARD_SWISH), *NEW)(model)


def _widen(model: ir.Model) -> None:
    if computes_in_half(model):
        logger.warning(
            "the model computes in half precision: what is not quantized is widened to float32; its inputs "
            "and outputs keep their types"
        )
        use_float32(model)
    if computes_in_half(model, (ir.DataType.DOUBLE,)):
        _narrow_double(model)


def _narrow_double(model: ir.Model) -> None:
    """Compute in float32 what the model computes in double, in place, if that holds all its constants."""
    if reason := needs_double(model):
        logger.warning("what the model computes in double stays in double: %s", reason)
        return
    logger.warning(
        "the model computes in double: narrowed to float32; its inputs and outputs keep their types"
    )
    use_float32(model, (ir.DataType.DOUBLE,))


@contextmanager
def _model_errors() -> Iterator[None]:
    """Turn what stops a pass into a ModelError, without the errors that onnx_ir wraps around it."""
    try:
        yield
    except (ir.passes.PassError, ir.passes.InvariantError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, ModelError):
            cause = cause.__cause__
        if isinstance(cause, ModelError):
            raise cause from error
        raise ModelError(f"the model cannot be simplified: {cause}") from error
