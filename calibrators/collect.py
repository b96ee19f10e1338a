"""One pass over the data: run the model, and fold what its tensors hold into statistics."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from calibrators.errors import CalibrationError
from calibrators.samples import Sample
from calibrators.session import RUNTIME_ERRORS, brief, open_session
from calibrators.statistics import Statistics, TensorStatistics

logger = logging.getLogger(__name__)


def collect(
    model: ir.Model | str | os.PathLike[str],
    tensors: Sequence[str],
    batches: Iterable[Sample],
    *,
    providers: Sequence[str] = ("CPUExecutionProvider",),
    threads: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Statistics:
    """The statistics of ``tensors`` over ``batches``.

    Each batch is run once and forgotten, so memory does not depend on how many there are: one batch is
    counted while the next one runs. Batches may differ in shape. NaN and infinite elements are left
    out and counted; a warning names the tensor and the sample.

    Args:
        model: a model, or the path of one; it is not changed.
        tensors: tensors of the main graph: intermediate ones, inputs or outputs.
        batches: what the model takes in one run each, with the number of samples in it.
        providers: execution providers, the preferred one first.
        threads: for running and for counting; 0 leaves it to ONNX Runtime and takes every processor.
        on_batch: called after each batch with the number of samples so far.

    Raises:
        CalibrationError: no batches, a tensor that the model does not have, or a batch that the
            model refuses (the message names the sample).
    """
    names = list(dict.fromkeys(tensors))
    session = open_session(model, outputs=names, providers=providers, threads=threads, spin=False)
    found = {name: TensorStatistics() for name in names}
    workers = threads or _processors()
    shares = [names[start::workers] for start in range(workers)]
    total = 0
    with ThreadPoolExecutor(workers) as pool:
        counting: list[Future[None]] = []
        for batch in batches:
            arrays = dict(zip(names, run_batch(session, names, batch), strict=True))
            _finish(counting)
            result = _Result(batch.name, batch.count, arrays)
            counting = [pool.submit(_fold, found, share, result) for share in shares]
            total += batch.count
            if on_batch is not None:
                on_batch(total)
        _finish(counting)
    if not total:
        raise CalibrationError("there is no calibration data: not one sample was given")
    _report(found)
    return Statistics(found, total)


def run_batch(
    session: ort.InferenceSession, outputs: Sequence[str], batch: Sample
) -> list[NDArray[np.generic]]:
    """The tensors called ``outputs`` for one batch; CalibrationError names the sample."""
    try:
        return list(session.run(list(outputs), dict(batch.feeds))) if outputs else []
    except RUNTIME_ERRORS as error:
        raise CalibrationError(f"the model cannot run {batch.name}: {brief(error)}") from error


@dataclass(frozen=True)
class _Result:
    """What the model made of one batch."""

    sample: str
    samples: int
    arrays: Mapping[str, NDArray[np.generic]]


def _finish(counting: Iterable[Future[None]]) -> None:
    """Wait, and raise what went wrong."""
    for future in counting:
        future.result()


def _fold(found: Mapping[str, TensorStatistics], names: Iterable[str], result: _Result) -> None:
    for name in names:
        _fold_tensor(found[name], name, result)


def _fold_tensor(tensor: TensorStatistics, name: str, result: _Result) -> None:
    array = result.arrays[name]
    if not isinstance(array, np.ndarray):
        raise CalibrationError(f"{name} cannot be observed: it is not a tensor but a {type(array).__name__}")
    known = tensor.nonfinite
    try:
        tensor.update(array, result.samples)
    except TypeError as error:
        raise CalibrationError(f"{name} cannot be observed: {error}") from error
    if tensor.nonfinite and not known:
        logger.warning(
            "%s: %d of %d values of tensor %s are NaN or infinite; such values are left out of its range",
            result.sample,
            tensor.nonfinite,
            array.size,
            name,
        )


def _report(found: Mapping[str, TensorStatistics]) -> None:
    """Say once more, at the end, which tensors were not sound."""
    for name, tensor in found.items():
        if not tensor.count:
            logger.warning("tensor %s never held a finite value: it cannot be given a range", name)
        elif tensor.nonfinite:
            logger.warning("tensor %s held %d NaN or infinite values in all", name, tensor.nonfinite)


def _processors() -> int:
    """How many of the machine's processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
