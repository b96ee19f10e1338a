"""What a worker does: count the samples of one unit of the data after the other, with one session."""

from __future__ import annotations

import logging
import os
import pickle
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import reduce

import onnx
import onnx_ir as ir

from calibrators.collect import Collector
from calibrators.data.samples import DataSource, Sample, batched, input_specs
from calibrators.onnx_files import from_proto, load_external, to_proto
from calibrators.statistics import Statistics
from onnxq.calibration.merging import merged_inputs
from onnxq.calibration.run import Checkpoint, open_collector
from onnxq.calibration.sample_split import Samples, in_batches, open_samples
from onnxq.calibration.shards import versions
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError

MOST_MODEL_BYTES = 2**31 - 2**20
"""The largest model that is sent to workers; protobuf holds no more. Larger ones they read from the file."""

Unit = range
"""The numbers of the samples that are counted together; they are lost, and counted again, together."""


@dataclass(frozen=True)
class Job:
    """What all workers of a calibration need.

    Attributes:
        model: the prepared model, serialized.
        tensors: tensor to observe -> the axis of its channel means; None: no means.
        config: the options; ``data`` is a path that every worker can read.
        shown: the same path as the user gave it, for the names of samples.
        moments: whether a sample of the inputs travels with the statistics.
        total: the number of samples, if it is known.
    """

    model: bytes = field(repr=False)
    tensors: Mapping[str, int | None]
    config: QuantConfig
    shown: str
    moments: bool
    total: int | None

    def open(self, threads: int) -> Callable[[Unit], tuple[Counted, bytes]]:
        """Load the model, once a worker, and return what counts a unit."""
        return Counter(self, threads).of_range


@dataclass(frozen=True)
class Counted:
    """What a worker reports of a unit, besides the statistics.

    Attributes:
        given: the number of samples that were read.
        skipped: the number of samples that were bad.
        warnings: what the worker had to say.
        versions: the versions of its libraries.
        process: its process.
    """

    given: int = 0
    skipped: int = 0
    warnings: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    process: int = field(default_factory=os.getpid)


def packed_model(model: ir.Model) -> bytes:
    """Serialize a model with all its weights.

    Raises:
        CalibrationError: it is too large for one message.
    """
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    if size > MOST_MODEL_BYTES:
        raise CalibrationError(
            f"the model has {size >> 20} MiB of weights, more than can be sent to workers: use one process, "
            "or calibrate parts of the data (--shard) on the machines instead, and merge them"
        )
    load_external(model)
    return bytes(to_proto(model).SerializeToString(deterministic=True))


def unpacked_model(packed: bytes) -> ir.Model:
    """Invert `packed_model`."""
    return from_proto(onnx.load_from_string(packed))


def pack(statistics: Statistics) -> bytes:
    """Serialize statistics for another process.

    They are mostly zeros, so a light compression is enough; it would only cost time for inputs.
    """
    inputs, bare = statistics.inputs, copy(statistics)
    bare.inputs = None
    return pickle.dumps((zlib.compress(pickle.dumps(bare, protocol=5), 1), inputs), protocol=5)


def unpack(packed: bytes) -> Statistics:
    """Invert `pack`."""
    bare, inputs = pickle.loads(packed)
    statistics: Statistics = pickle.loads(zlib.decompress(bare))
    statistics.inputs = inputs
    return statistics


def merge_packed(parts: Sequence[bytes]) -> bytes:
    """Merge the packed statistics of units, which may come in any order."""
    return pack(merge_units(map(unpack, parts)))


def merge_units(parts: Iterable[Statistics]) -> Statistics:
    """Merge the statistics of units, and the inputs that travel with them."""

    def both(one: Statistics, other: Statistics) -> Statistics:
        result = one.merge(other, same_stream=True)
        result.inputs = merged_inputs(one.inputs, other.inputs)
        return result

    return reduce(both, parts)


class Counter:
    """Counts units of one job. The model is loaded, and its session opened, once.

    Attributes:
        inputs: the inputs of the model.
    """

    def __init__(self, job: Job, threads: int) -> None:
        """Open the model.

        Args:
            job: what is to be done.
            threads: the number of threads of this worker.
        """
        self._job = job
        self._config = job.config.model_copy(update={"threads": threads})
        self._model = unpacked_model(job.model)
        self.inputs = input_specs(self._model)
        self._batched = batched(self.inputs)
        self._base: Samples | None = None
        self._collector: Collector | None = None

    def of_range(self, unit: Unit) -> tuple[Counted, bytes]:
        """Count the samples of ``config.data`` with these numbers.

        Raises:
            CalibrationError: a sample cannot be used, and bad ones are not skipped.
        """
        if self._base is None:
            self._base = open_samples(self._model, self._config.data, self._config)
        source = self._base.source
        assert isinstance(source, DataSource)
        assert source.read_part is not None
        return self.of(map(self._named, source.read_part(unit)), self._base)

    def _named(self, sample: Sample) -> Sample:
        """Name a sample as a run in one process does."""
        return replace(sample, name=self._job.shown + sample.name.removeprefix(str(self._config.data)))

    def of(self, source: Iterable[Sample], base: Samples) -> tuple[Counted, bytes]:
        """Count the samples of ``source``, which ``base`` tells how to treat."""
        before = base.skipped
        moments = self._job.moments
        samples = Samples(
            source,
            None,
            block=base.block,
            unreadable=base.unreadable,
            refused=base.refused,
            holds=moments,
            travel=moments,
        ).thinned_for(self._job.total)
        with Heard() as heard:
            statistics = self._counted(samples)
        counted = Counted(samples.given, base.skipped - before, tuple(heard))
        return counted, pack(statistics)

    def _counted(self, samples: Samples) -> Statistics:
        if self._collector is None:
            self._collector = open_collector(self._model, self._job.tensors, samples, self._config)
        place = Checkpoint()
        try:
            for batch in in_batches(samples, self._model, self._config):
                self._collector.observe(batch)
                place = place.after(batch, self._batched)
            statistics = self._collector.finish_part()
        except BaseException:
            self._collector.close()
            self._collector = None
            raise
        statistics.checksum = place.checksum
        statistics.inputs = samples.kept if samples.travel else None
        return statistics


class Heard(logging.Handler):
    """Collects the warnings of a block."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning."""
        self.texts.append(record.getMessage())

    def __enter__(self) -> list[str]:
        for name in ("onnxq", "calibrators"):
            logging.getLogger(name).addHandler(self)
        return self.texts

    def __exit__(self, *_: object) -> None:
        for name in ("onnxq", "calibrators"):
            logging.getLogger(name).removeHandler(self)


def units(numbers: range, block: int) -> Iterator[Unit]:
    """Cut the samples into units; they do not depend on the number of workers.

    A unit is small enough that all workers have something to do, and large enough that packing its
    statistics takes little time beside counting.
    """
    size = -(-min(max(len(numbers) // 32, 8), 512) // block) * block
    starts = range(numbers.start, numbers.stop, size)
    return (range(start, min(start + size, numbers.stop)) for start in starts)


def check_versions(counted: Counted) -> None:
    """Check that a worker runs the same libraries.

    Raises:
        CalibrationError: it does not, so the result might depend on the worker.
    """
    ours = versions()
    if counted.versions != ours:
        raise CalibrationError(
            f"a worker runs {dict(counted.versions)}, but this process {ours}: install the same versions"
        )
