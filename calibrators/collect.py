"""One pass over the data: run the model, and fold what its tensors hold into statistics."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.session import RUNTIME_ERRORS, brief, open_session
from calibrators.statistics import Statistics, TensorStatistics

logger = logging.getLogger(__name__)

Batch = tuple[str, Mapping[str, NDArray[np.generic]]]
"""A name for messages, and an array for each input of the model. The first axis counts samples."""


def collect(
    model: ir.Model | str | os.PathLike[str],
    tensors: Sequence[str],
    batches: Iterable[Batch],
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """The statistics of ``tensors`` over ``batches``.

    Each batch is run once and forgotten, so memory does not depend on how many there are. Batches may
    differ in shape. NaN and infinite elements are left out and counted; a warning names the tensor
    and the sample.

    Args:
        model: a model, or the path of one; it is not changed.
        tensors: tensors of the main graph: intermediate ones, inputs or outputs.
        batches: see `Batch`. A batch holds as many samples as the first axis of its first array.
        providers: execution providers, the preferred one first.
        threads: for running and for counting; 0 leaves it to ONNX Runtime and takes every processor.
        on_batch: called after each batch with the number of samples in it.

    Raises:
        CalibrationError: no batches, a tensor that the model does not have, or a batch that the
            model refuses (the message names the sample).
    """
    names = list(dict.fromkeys(tensors))
    session = open_session(model, outputs=names, providers=providers, threads=threads, spin=False)
    found = {name: TensorStatistics() for name in names}
    total = 0
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        for sample, feeds in batches:
            arrays = dict(zip(names, run_batch(session, names, sample, feeds), strict=True))
            samples = _samples(feeds)
            _observe(found, arrays, sample, samples, pool)
            total += samples
            if on_batch is not None:
                on_batch(samples)
    if not total:
        raise CalibrationError("there is no calibration data: not one sample was given")
    _report(found)
    return Statistics(found, total)


def run_batch(
    session: ort.InferenceSession,
    outputs: Sequence[str],
    sample: str,
    feeds: Mapping[str, NDArray[np.generic]],
) -> list[NDArray[np.generic]]:
    """The tensors called ``outputs`` for one batch; CalibrationError names the sample."""
    try:
        return list(session.run(list(outputs), dict(feeds))) if outputs else []
    except RUNTIME_ERRORS as error:
        raise CalibrationError(f"the model cannot run {sample}: {brief(error)}") from error


def _observe(
    found: Mapping[str, TensorStatistics],
    arrays: Mapping[str, NDArray[np.generic]],
    sample: str,
    samples: int,
    pool: ThreadPoolExecutor,
) -> None:
    """Fold one batch in, its tensors dealt out to the threads of the pool."""

    def fold(names: Sequence[str]) -> None:
        for name in names:
            _fold(name, found[name], arrays[name], sample, samples)

    names, workers = list(found), os.cpu_count() or 1
    for _ in pool.map(fold, (names[start::workers] for start in range(workers))):
        pass


def _fold(name: str, tensor: TensorStatistics, array: NDArray[np.generic], sample: str, samples: int) -> None:
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"{name} cannot be observed: it is not a tensor but a {type(array).__name__}")
    known = tensor.nonfinite
    try:
        tensor.update(array, samples)
    except TypeError as error:
        raise CalibrationError(f"{name} cannot be observed: {error}") from error
    if tensor.nonfinite and not known:
        logger.warning(
            "%s holds %d NaN or infinite values of %d for %s; they are left out of its range",
            name,
            tensor.nonfinite,
            array.size,
            sample,
        )


def _report(found: Mapping[str, TensorStatistics]) -> None:
    """Say once more, at the end, which tensors were not sound."""
    for name, tensor in found.items():
        if not tensor.count:
            logger.warning("%s never held a finite value: it cannot be given a range", name)
        elif tensor.nonfinite:
            logger.warning("%s held %d NaN or infinite values in all", name, tensor.nonfinite)


def _samples(feeds: Mapping[str, NDArray[np.generic]]) -> int:
    """The length of the first axis of the first array that has one."""
    return next((int(array.shape[0]) for array in feeds.values() if np.ndim(array)), 1)
