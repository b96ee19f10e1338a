"""Compare the outputs of another runtime with those of ONNX Runtime without optimizations."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from calibrators.collect import run_batch
from calibrators.data.samples import input_specs
from calibrators.data.synthetic import check_sizes
from calibrators.errors import CalibrationError
from calibrators.held_noise import draws
from calibrators.session import open_session
from onnxq.verify.accuracy import outcome
from onnxq.verify.outputs.output_kinds import float_kinds
from onnxq.verify.subject import Subject
from onnxq.verify.verdict import Finding

ALIKE = 20.0
"""SQNR in dB; below, the runtime computes something else than the model says."""


@contextmanager
def files(subject: Subject) -> Iterator[tuple[Path, Path]]:
    """Write the first sample to a file, and give its path and a path for the outputs."""
    with tempfile.TemporaryDirectory(prefix="verify-", ignore_cleanup_errors=True) as folder:
        feeds = Path(folder) / "inputs.npz"
        np.savez(feeds, **_inputs(subject))
        yield feeds, Path(folder) / "outputs.npz"


def _inputs(subject: Subject) -> dict[str, Any]:
    """The first sample; zeros if there are no samples, with size 1 for unknown axes.

    Raises:
        CalibrationError: an input is declared too large.
    """
    if subject.samples:
        return dict(subject.samples[0].feeds)
    specs = input_specs(subject.model)
    shapes = {spec.name: [d if isinstance(d, int) else 1 for d in spec.shape or ()] for spec in specs}
    check_sizes(specs, shapes)
    return {spec.name: np.zeros(shapes[spec.name], spec.dtype) for spec in specs}


def output_agreement(subject: Subject, outputs: Path, who: str) -> tuple[str, list[Finding]]:
    """Compare the outputs for the first sample with those of ONNX Runtime.

    Args:
        subject: the model and its samples.
        outputs: the file that holds the other runtime's outputs.
        who: the name of the other runtime.

    Returns:
        The result as a text, and an error finding if the outputs differ too much.
    """
    if not subject.samples:
        return "outputs not compared", []
    if draws(subject.model):
        return "outputs not compared: the model draws random numbers, and each runtime draws others", []
    try:
        session = open_session(subject.path, threads=subject.threads, optimize=False)
        kinds = float_kinds(subject.model)
        expected = run_batch(session, list(kinds), subject.samples[0])
    except CalibrationError as error:
        return f"outputs not compared: {error}", []
    with np.load(outputs) as given:
        ratio = outcome(kinds, [(expected, [given[name] for name in kinds])], 1).sqnr
    if np.isnan(ratio) or ratio == np.inf:
        return f"the same outputs on {who} as with ONNX Runtime", []
    text = f"SQNR {ratio:.1f} dB between {who} and ONNX Runtime"
    return text, [Finding("", "error", f"{text}, expected {ALIKE:.0f}.")] if ratio < ALIKE else []
