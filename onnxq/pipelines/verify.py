"""A Q/DQ model's path -> what its target's rules and runtimes say of it: `onnxq verify`."""

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
"""How many of the data are run; more say hardly more of kernels."""


def verify_file(
    path: str | os.PathLike[str], config: QuantConfig, progress: Progress = silent
) -> tuple[Verdict, ...]:
    """What ``config.target``'s rules and its runtimes say of a quantized model, of any origin.

    It is run on some of ``config.data``, or on synthetic inputs: they do for comparing what runtimes compute.

    Raises:
        OnnxqError: the model or the data cannot be used, or there is no such target.
    """
    target = get_target(config.target)
    with as_onnxq_errors(), opened(path) as (file, model):
        progress("checking")
        subject = Subject(file, model, target, _samples(model, config), config.threads)
        return tuple(verify(subject))


def _samples(model: ir.Model, config: QuantConfig) -> list[Sample]:
    samples = open_samples(model, config.data, config)
    return list(islice(in_batches(samples.source, model, config), SAMPLES))
