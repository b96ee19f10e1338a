"""Check a written model with weights in blocks: it loads, and is compared with the float model if that fits.

A float model is compared without being asked for only as long as it is small: ONNX Runtime holds it in memory
as a whole, and this mode is for models of any size. Given samples, or ``--verify full``, it always is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from calibrators.errors import CalibrationError
from calibrators.onnx_files import stored_tensors
from calibrators.session import open_session
from onnxq.algorithms.context import CorrectionContext
from onnxq.calibration.sample_split import Data, Samples, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.progress import Progress
from onnxq.graph.files import constant_bytes, size_on_disk
from onnxq.graph.half_precision.simulate import runnable
from onnxq.pipelines.acceptance import (
    Acceptance,
    accept,
    check_trusted,
    output_warnings,
    speed_warnings,
    with_speed,
)
from onnxq.pipelines.dynamic.acceptance import make_dynamic_context
from onnxq.verify.accuracy import Quality

COMPARED_BYTES = 2**28
"""The most bytes of weights of a float model that is run without being asked for."""

LOADED_BYTES = 2**29
"""The most bytes of weights of a written model that is loaded without being asked for."""

SYNTHETIC_COUNT = 10
"""The number of synthetic samples; a fifth of them is compared on."""

_LARGE = (
    "accuracy was not measured: the float model has {} MB of weights, which ONNX Runtime would hold in "
    "memory. Give samples with --data, or --verify full."
)
_OFF = "accuracy was not measured: --verify off."
_NO_SAMPLES = "accuracy was not measured: no synthetic inputs suit the model. Give samples with --data."
_SYNTHETIC = "accuracy was measured on synthetic inputs, which may not tell: give real samples with --data."


@dataclass(frozen=True)
class Judge:
    """Compares written models with the float model.

    Attributes:
        reference: the float model as one graph.
        context: its samples; None if it is not compared.
        config: the options.
        unmeasured: the warning where accuracy could not be measured.
    """

    reference: ir.Model
    context: CorrectionContext | None
    config: QuantConfig
    unmeasured: str = _NO_SAMPLES

    @property
    def samples(self) -> Samples:
        """The samples; none if it is not compared."""
        return Samples((), 0, synthetic=True) if self.context is None else self.context.samples

    def accept(self, draft: Path) -> Acceptance:
        """Load a written model, and compare it.

        Raises:
            CalibrationError: a model does not load, or does not take a given sample.
            ModelError: ``--strict``, and the result should not be trusted.
        """
        if self.context is None:
            constants = constant_bytes(draft)
            if constants <= LOADED_BYTES and self.config.verify != "off":
                open_session(draft, threads=self.config.threads, exact=False)
            return Acceptance(None, (), size=size_on_disk(draft), constants=constants)
        accepted = accept(draft, self.context.judge, lambda path: ())
        check_trusted(accepted, self.context)
        self.context.evaluator.release()
        return with_speed(accepted, draft, self.reference, self.context)

    def quality(self, draft: Path) -> Quality:
        """Compare a written model with the float model on the held-out samples.

        Raises:
            CalibrationError: a model does not load, or does not take a given sample.
        """
        assert self.context is not None
        return self.context.evaluator.evaluate(runnable(draft))

    def warnings(self, accepted: Acceptance) -> Iterator[str]:
        """Yield the warnings about a model that was accepted."""
        yield from self.samples.warnings
        if accepted.quality is None:
            yield self.unmeasured
        elif self.samples.synthetic:
            yield _SYNTHETIC
        yield from speed_warnings(accepted, "")
        yield from output_warnings(accepted.quality, "Keep sensitive nodes in float with --exclude.")


def make_judge(
    path: str, reference: ir.Model, data: Data | None, config: QuantConfig, progress: Progress
) -> Judge:
    """Make the judge of a float model.

    Args:
        path: the file of the float model.
        reference: the same as one graph.
        data: given samples; synthetic ones if None.
        config: the options.
        progress: called with the progress of the work.

    Raises:
        CalibrationError: given data cannot be read or does not fit the model.
    """
    size = sum(tensor.nbytes for tensor in stored_tensors(reference))
    if data is None and config.verify == "off":
        return Judge(reference, None, config, _OFF)
    if data is None and config.verify == "auto" and size > COMPARED_BYTES:
        return Judge(reference, None, config, _LARGE.format(size // 10**6))
    try:
        samples = open_samples(reference, data, config, default_count=SYNTHETIC_COUNT)
    except CalibrationError:
        if data is not None:
            raise
        samples = Samples((), 0, synthetic=True)
    context = make_dynamic_context(path, reference, samples, config, progress)
    return Judge(reference, context, config)
