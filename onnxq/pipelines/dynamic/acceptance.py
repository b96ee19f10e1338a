"""Check a written dynamic model, as ``pipelines/acceptance.py`` does, but without quantization points."""

from __future__ import annotations

import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.onnx_files import read_model
from calibrators.session import Model, open_session
from onnxq.algorithms.context import CorrectionContext, make_context
from onnxq.calibration.sample_split import Samples
from onnxq.core.config import QuantConfig
from onnxq.core.plan import QuantPlan
from onnxq.core.progress import Progress
from onnxq.graph.nodes import all_nodes
from onnxq.pipelines.acceptance import (
    Acceptance,
    accept,
    check_trusted,
    output_warnings,
    saturation_warnings,
    speed_warnings,
    with_quality_here,
    with_speed,
)
from onnxq.pipelines.dynamic.scheme import DynamicScheme, WeightForm
from onnxq.verify.onnxruntime import RUNTIME
from onnxq.verify.verdict import Verdict, make_verdict

logger = logging.getLogger(__name__)

READ = 256
"""The most samples to fit on. They show which channels are large; more samples hardly change that."""

INTEGER_KERNELS = frozenset(
    {
        *("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger"),
        *("DynamicQuantizeLSTM", "QAttention"),
    }
)
"""The integer kernels that ONNX Runtime fuses operators into."""


def accept_dynamic(
    draft: Path, plan: QuantPlan, scheme: DynamicScheme, reference: ir.Model, context: CorrectionContext
) -> Acceptance:
    """Run the acceptance check of a dynamic model: accuracy, integer kernels, speed.

    Args:
        draft: the temporary file of the model.
        plan: the nodes that are quantized.
        scheme: the form of dynamic quantization for the target.
        reference: the float model, cleaned.
        context: holds the original, the samples and the options.

    Raises:
        CalibrationError: the model does not load, or one of the two does not take a given sample.
        ModelError: ``--strict``, and the result should not be trusted.
    """
    accepted = accept(draft, context.judge, partial(_verdicts, scheme=scheme, config=context.config))
    check_trusted(accepted, context)
    if accepted.quality is None:
        return accepted
    accepted = with_quality_here(accepted, draft, plan, context.evaluator)
    return with_speed(accepted, draft, reference, context)


def _verdicts(draft: Path, scheme: DynamicScheme, config: QuantConfig) -> Iterator[Verdict]:
    """Yield a verdict with the integer kernels that ONNX Runtime uses, in bodies of control flow too."""
    if scheme.form is not WeightForm.INTEGERS or config.verify == "off":
        return
    with tempfile.TemporaryDirectory(prefix="dynamic-", ignore_cleanup_errors=True) as folder:
        file = Path(folder) / "fused.onnx"
        open_session(draft, threads=1, save_fused=file)
        kinds = [node.op_type for node in all_nodes(read_model(file))]
    found = Counter(kind for kind in kinds if kind in INTEGER_KERNELS)
    summary = ", ".join(f"{count} {kind}" for kind, count in found.most_common())
    yield make_verdict(RUNTIME, f"integer kernels: {summary or 'none'}", counts=found)


def dynamic_warnings(accepted: Acceptance, samples: Samples) -> Iterator[str]:
    """Yield the warnings about a dynamic model."""
    yield from samples.warnings
    if accepted.quality is None:
        yield (
            "accuracy was not measured, and the model was loaded but not run: no synthetic inputs suit it. "
            "Give samples with --data."
        )
    elif samples.synthetic:
        yield "accuracy was measured on synthetic inputs, which may not tell: give real samples with --data."
    if not samples.synthetic:
        yield from saturation_warnings(accepted)
    yield from speed_warnings(accepted, " Try another --include or --exclude.")
    yield from output_warnings(accepted.quality, "Keep sensitive nodes in float with --exclude.")


def make_dynamic_context(
    original: Model, reference: ir.Model, samples: Samples, config: QuantConfig, progress: Progress
) -> CorrectionContext:
    """Make the context of a dynamic quantization. It reads the first samples, because nothing is calibrated.

    Args:
        original: the float model as the user has it, or its path.
        reference: the same, cleaned.
        samples: given samples, or synthetic ones.
        config: the options.
        progress: called with the progress of the work.
    """
    for _ in islice(samples, READ):
        pass
    context = make_context(original, reference, samples, config, progress)
    if not samples.synthetic:
        return context
    return replace(context, evaluator=context.evaluator.skipping(_unsuited), on_bad=_unsuited)


def _unsuited(error: CalibrationError, samples: int) -> None:
    """Log that a model refuses synthetic inputs, which is no error."""
    logger.info("synthetic inputs do not suit the model: %s", error)
