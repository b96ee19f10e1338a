"""Check a Q/DQ model against the rules and the runtimes of its target: `onnxq verify`."""

from __future__ import annotations

import os
from itertools import islice

import onnx_ir as ir

from calibrators.data.samples import Sample
from onnxq.calibration.sample_split import in_batches, open_samples
from onnxq.core.config import QuantConfig
from onnxq.core.progress import Progress, silent
from onnxq.pipelines.preflight import as_onnxq_errors
from onnxq.targets.lookup import get_target
from onnxq.verify.checkers import verify
from onnxq.verify.subject import Subject, opened
from onnxq.verify.verdict import Verdict

SAMPLES = 8
"""Number of samples to run; more would hardly tell more about kernels."""


def verify_file(
    path: str | os.PathLike[str], config: QuantConfig, progress: Progress = silent
) -> tuple[Verdict, ...]:
    """Check a quantized model of any origin against the rules and the runtimes of ``config.target``.

    Args:
        path: path of the quantized model.
        config: the options. The model runs on some of ``config.data``, or else on synthetic inputs, which
            suffice to compare what runtimes compute.
        progress: called with the progress of the work.

    Raises:
        OnnxqError: the model or the data cannot be used, or there is no such target.
    """
    target = get_target(config.target)
    with as_onnxq_errors(path), opened(path) as (file, model):
        progress("checking")
        subject = Subject(file, model, target, _samples(model, config), config.threads)
        return tuple(verify(subject))


def _samples(model: ir.Model, config: QuantConfig) -> list[Sample]:
    samples = open_samples(model, config.data, config)
    return list(islice(in_batches(samples.source, model, config), SAMPLES))
