"""Calibrate on any ``ray.data.Dataset``: Parquet, pictures, arrays, on storage that every machine can read.

A row is a sample, a column an input of the model. The rows of a block are counted by an actor, which gives
back only their statistics; Ray Data starts a lost actor again and repeats its block.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from calibrators.collect import tell_nonfinite
from calibrators.data.bad_samples import usable
from calibrators.data.images import load_image
from calibrators.data.iterables import from_item
from calibrators.data.preprocess import DEFAULT, parse_preprocess
from calibrators.data.samples import InputSpec, Sample, fixed_batch, input_specs
from calibrators.statistics import Statistics
from onnxq.calibration.sample_split import BadSampleCounter, Samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError
from onnxq.core.progress import Progress, silent
from onnxq.distributed.counting import Counter, Job, merge_units, packed_model, unpack
from onnxq.distributed.ray_actors import Cluster, connected, fitted
from onnxq.pipelines.calibrate import check_calibratable
from onnxq.pipelines.preflight import as_onnxq_errors
from onnxq.pipelines.prepare import ModelPath, prepare_for_all

NUMBER = "sample_number"
"""The column that numbers the rows, made here unless the dataset has one."""

READERS = 0.5
"""CPUs that must be left for the tasks that read the dataset: without any it would wait for ever."""

ROWS = 256
"""The number of rows that are counted together."""


def calibrate_dataset(
    model: ModelPath,
    dataset: Any,
    config: QuantConfig | None = None,
    cluster: Cluster | None = None,
    *,
    number: str | None = None,
    moments: bool = False,
    progress: Progress = silent,
) -> Statistics:
    """Collect statistics over a ``ray.data.Dataset``, as `onnxq.calibrate` does over files.

    Args:
        model: path of the float model; only the caller reads it.
        dataset: a row is a sample, without the batch axis or with one of size 1; each input of the model has
            a column of its name. A column with encoded pictures or their uint8 pixels ``[H, W, 3]`` suits a
            model that takes images; it is preprocessed as files are.
        config: the options; defaults if None.
        cluster: number and size of the actors.
        number: the column with the number of each row, from 0: with it the result is the same however the
            rows are shuffled. None: rows are numbered in the order of the dataset.
        moments: as ``with_moments`` of `onnxq.calibrate`.
        progress: called with the number of samples done.

    Raises:
        ConfigError: the actors would leave no CPU to read the dataset.
        OnnxqError: the model or a row cannot be used.
    """
    config = config or QuantConfig()
    check_calibratable(model, dataset, config)
    with as_onnxq_errors(model), connected(cluster or Cluster()) as ray:
        place = fitted(cluster or Cluster(), ray.cluster_resources(), READERS)
        simple, tensors = prepare_for_all(model, config, means=moments)
        if (fixed_batch(input_specs(simple)) or 1) > 1:
            raise ConfigError("the model fixes its batch size, and rows of a dataset come in any order")
        rows, total = _numbered(ray, dataset, number, config.samples)
        settings = config.model_copy(update={"save_statistics": None})
        job = Job(packed_model(simple), tensors, settings, "", moments, total)
        counted = rows.map_batches(
            BlockCounter,
            batch_size=ROWS,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=place.workers),
            num_cpus=place.cpus,
            num_gpus=place.gpus or None,
            fn_constructor_kwargs={"job": ray.put(job), "number": number or NUMBER, "cpus": place.cpus},
        )
        statistics = _merged(counted, total, progress)
        if not statistics.samples:
            raise CalibrationError("no row of the dataset can be used")
        tell_nonfinite(statistics)
        if config.save_statistics is not None:
            statistics.save(config.save_statistics)
    return statistics


def _numbered(ray: Any, dataset: Any, number: str | None, limit: int | None) -> tuple[Any, int]:
    """Return the dataset with a column of numbers, and the number of its rows."""
    if number is not None:
        rows = dataset if limit is None else dataset.filter(lambda row: row[number] < limit)
        return rows, min(dataset.count(), limit or dataset.count())
    for context in (ray.data.DataContext.get_current(), dataset.context):
        context.execution_options.preserve_order = True  # a dataset keeps the options that it began with
    rows = (dataset if limit is None else dataset.limit(limit)).materialize()
    rows.context.execution_options.preserve_order = True
    total = rows.count()
    return rows.zip(ray.data.range(total).rename_columns({"id": NUMBER})), total


def _merged(counted: Any, total: int, progress: Progress) -> Statistics:
    """Merge the statistics of the blocks as they come; only one block is in memory beside the sum."""
    result: Statistics | None = None
    done = 0
    for row in counted.iter_rows():
        part = unpack(row["statistics"])
        done += int(row["given"])
        result = part if result is None else merge_units([result, part])
        progress("calibrating", done, total)
    if result is None:
        raise CalibrationError("the dataset holds no rows")
    return result


class BlockCounter:
    """Counts blocks of rows; made once an actor."""

    def __init__(self, job: Any, number: str, cpus: float) -> None:
        """Open the model.

        Args:
            job: what is to be done, or a reference to it.
            number: the column with the numbers.
            cpus: CPUs of this actor.
        """
        if not isinstance(job, Job):
            import ray

            job = ray.get(job)
        self._job, self._number = job, number
        self._counter = Counter(job, job.config.threads or max(1, round(cpus)))
        self._inputs = self._counter.inputs

    def __call__(self, block: Mapping[str, Any]) -> dict[str, Any]:
        """Count the rows of a block; return its statistics as a row."""
        skips = self._job.config.skip_bad_samples
        bad = (BadSampleCounter(), BadSampleCounter()) if skips else (None, None)
        base = Samples((), None, unreadable=bad[0], refused=bad[1])
        source = usable(self._loads(block), bad[0], may_be_empty=True)
        counted, packed = self._counter.of(source, base)
        return {"statistics": np.array([packed], object), "given": np.array([counted.given])}

    def _loads(self, block: Mapping[str, Any]) -> Iterator[partial[Sample]]:
        for index, number in enumerate(block[self._number]):
            yield partial(self._sample, {name: column[index] for name, column in block.items()}, int(number))

    def _sample(self, row: Mapping[str, Any], number: int) -> Sample:
        where = f"row {number} of the dataset"
        feeds = {spec.name: row[spec.name] for spec in self._inputs if spec.name in row}
        if len(self._inputs) == 1:
            spec = self._inputs[0]
            others = [value for name, value in row.items() if name != self._number]
            value = feeds.get(spec.name, others[0] if len(others) == 1 else row.get("image"))
            picture = _picture(value, self._job.config, spec)
            feeds = {} if value is None else {spec.name: value if picture is None else picture}
        shaped = {spec.name: _shaped(feeds[spec.name], spec) for spec in self._inputs if spec.name in feeds}
        return replace(from_item(shaped, self._inputs, where), numbers=(number,))


def _shaped(value: Any, spec: InputSpec) -> Any:
    """Give a value the shape of the input: columns of Parquet are often flat lists, or lists of lists."""
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype.hasobject):
        value = np.array(value.tolist() if isinstance(value, np.ndarray) else value)
    sizes = (spec.shape or ())[1:]
    fixed = [size for size in sizes if isinstance(size, int)]
    flat = isinstance(value, np.ndarray) and value.ndim == 1 and len(sizes) > 1
    return value.reshape(fixed) if flat and len(fixed) == len(sizes) else value


def _picture(value: Any, config: QuantConfig, spec: InputSpec) -> Any:
    """Preprocess a picture; None if the value is none."""
    settings = parse_preprocess(config.preprocess or DEFAULT)
    if isinstance(value, bytes):
        return load_image(io.BytesIO(value), settings, spec)
    pixels = isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3
    if not pixels or spec.dtype == np.uint8:
        return None
    file = io.BytesIO()
    Image.fromarray(value).save(file, "BMP")
    file.seek(0)
    return load_image(file, settings, spec)
