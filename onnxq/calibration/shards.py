"""A calibration in parts: which samples a part takes, and what its file records to be checked by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import import_module, metadata
from typing import Any

from calibrators.data.samples import DataSource
from onnxq.calibration.sample_split import Samples
from onnxq.core.config import QuantConfig
from onnxq.core.errors import CalibrationError, ConfigError

ANYWHERE = ("data", "batch_size", "save_statistics", "provider", "threads", "verify")
"""Options that may differ from part to part, as files do that lie elsewhere on another machine."""


@dataclass(frozen=True)
class Shard:
    """One of ``count`` parts of the data; ``index`` counts from 1."""

    index: int
    count: int

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: there is no such part.
        """
        if not 1 <= self.index <= self.count:
            raise ConfigError(f"shard {self}: expected I/N with I from 1 to N, such as 3/8")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``I/N``.

        Raises:
            ConfigError: the text has another form, or there is no such part.
        """
        index, _, count = text.partition("/")
        if not (index.isascii() and index.isdigit() and count.isascii() and count.isdigit()):
            raise ConfigError(f"shard {text!r}: expected I/N with I from 1 to N, such as 3/8")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def numbers(self, total: int, block: int) -> range:
        """Find the samples of this part: a stretch of the ``total``, in whole blocks where possible."""
        blocks = -(-total // block)
        first, last = (blocks * i // self.count * block for i in (self.index - 1, self.index))
        return range(first, min(last, total))


@dataclass(frozen=True)
class Scope:
    """What a calibration covers, and what travels with its statistics.

    Attributes:
        shard: take this part of the samples only; None: all.
        moments: let a bounded sample of inputs travel along, for corrections.
    """

    shard: Shard | None = None
    moments: bool = False


WHOLE = Scope()
"""All samples, and only statistics."""


def scoped_samples(samples: Samples, scope: Scope, config: QuantConfig) -> Samples:
    """Restrict ``samples`` to a part of them, and hold samples out if inputs are to travel.

    Raises:
        CalibrationError: the number of samples is not known before they are read, or bad ones would shift the
            batches of a model that fixes their size.
    """
    samples = replace(samples, holds=scope.moments, travel=scope.moments).thinned_for(samples.total)
    if scope.shard is None:
        return samples
    if samples.block > 1 and config.skip_bad_samples:
        raise CalibrationError(
            f"the model takes batches of {samples.block} samples, and which ones belong together depends on "
            "the bad samples before them: a part (--shard) cannot skip bad samples"
        )
    numbers = scope.shard.numbers(usable_total(samples), samples.block)
    return within(samples, numbers, part_of(samples, scope, config))


def usable_total(samples: Samples) -> int:
    """Return the number of samples without those that fill no batch, which one run leaves out too."""
    total = samples.total or 0
    return total - total % samples.block if total >= samples.block else total


def within(samples: Samples, numbers: range, part: Mapping[str, Any]) -> Samples:
    """Restrict ``samples`` to those with the given numbers.

    Raises:
        CalibrationError: the number of samples is not known before they are read.
    """
    read = samples.source.read_part if isinstance(samples.source, DataSource) else None
    if read is None:
        raise CalibrationError(
            "samples from a Python iterable have no numbers before they are read, so no part of them (shard) "
            "can be taken: give the path of the data, or a ray.data.Dataset"
        )
    source = DataSource(lambda: read(numbers), len(numbers))
    return replace(samples, source=source, total=len(numbers), part=part)


def part_of(samples: Samples, scope: Scope, config: QuantConfig) -> dict[str, Any]:
    """Describe a part: what must be the same in all parts of a calibration, and which one it is."""
    shard = scope.shard or Shard(1, 1)
    changed = config.model_dump(mode="json", exclude_defaults=True, exclude=set(ANYWHERE))
    given = {"target": config.target} if "target" in config.model_fields_set else {}
    return {
        "shard": [shard.index, shard.count],
        "samples": samples.total,
        "block": samples.block,
        "options": {**changed, **given, **({"with_moments": True} if scope.moments else {})},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Find the versions of the libraries whose results enter the statistics."""
    try:
        ours = metadata.version("onnxq")
    except metadata.PackageNotFoundError:
        ours = "unknown"
    return {"onnxq": ours, "onnxruntime": import_module("onnxruntime").__version__}


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield in words what differs between two descriptions, their shards aside."""
    for name in sorted((one.keys() | other.keys()) - {"shard"}):
        first, second = one.get(name), other.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            yield from differences(first, second, f"{name[:-1]} ")
        elif first != second:
            yield f"{prefix}{name} {_shown(first)} instead of {_shown(second)}"


def _shown(value: Any) -> str:
    return "(not given)" if value is None else str(value)
