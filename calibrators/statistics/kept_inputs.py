"""A bounded sample of inputs that travels with statistics, so that corrections can run without the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibrators.data.samples import Sample
from calibrators.errors import CalibrationError

USUAL_BYTES = 2**28
"""The most bytes of either set, but for a single sample, which may be larger."""

MOST_BYTES = 4 * USUAL_BYTES
"""The most bytes of inputs that are read from a file."""

Numbered = Mapping[int, Sample]


@dataclass(frozen=True)
class KeptInputs:
    """Samples of the data, unchanged.

    Attributes:
        held: held-out samples by their number in the stream of data.
        fit: samples that were calibrated on, by their place among those.
        block: how many successive samples stay together.
    """

    held: Numbered = field(default_factory=dict)
    fit: Numbered = field(default_factory=dict)
    block: int = 1

    @property
    def bytes(self) -> int:
        """The bytes of all arrays."""
        every = [*self.held.values(), *self.fit.values()]
        return sum(array.nbytes for sample in every for array in sample.feeds.values())

    def __str__(self) -> str:
        return (
            f"{len(self.held)} held out and {len(self.fit)} to fit corrections: {self.bytes / 1e6:.1f} MB "
            f"(at most {USUAL_BYTES >> 20} MiB of each)"
        )

    def described(self) -> dict[str, Any]:
        """Describe the samples as JSON values."""
        return {"block": self.block, "held": _descriptions(self.held), "fit": _descriptions(self.fit)}

    def arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield each array with its name in a file."""
        for kind, samples in (("held", self.held), ("fit", self.fit)):
            for number in sorted(samples):
                for index, array in enumerate(samples[number].feeds.values()):
                    yield _name(kind, number, index), _plain(array)


def read_inputs(described: Any, read: Callable[[str, Any, tuple[int, ...]], NDArray[Any]]) -> KeptInputs:
    """Read what a file holds.

    Args:
        described: the description of `KeptInputs.described`.
        read: reads the array of this name, type and shape.

    Raises:
        CalibrationError: the samples take more than `MOST_BYTES`.
        KeyError, TypeError, ValueError: the description is damaged.
    """
    found: dict[str, dict[int, Sample]] = {"held": {}, "fit": {}}
    size = 0
    for kind, samples in found.items():
        for one in described[kind]:
            feeds = {}
            for index, (name, dtype, shape) in enumerate(one["arrays"]):
                size += np.dtype(dtype).itemsize * int(np.prod(shape, dtype=object))
                if size > MOST_BYTES:
                    raise CalibrationError(f"it holds more than {MOST_BYTES >> 20} MiB of inputs")
                array = read(_name(kind, int(one["number"]), index), np.dtype(dtype), tuple(shape))
                feeds[str(name)] = array.astype(object) if array.dtype.kind == "U" else array
            number = int(one["number"])
            samples[number] = Sample(
                str(one["name"]), feeds, int(one["count"]), bool(one["joinable"]), numbers=(number,)
            )
    return KeptInputs(found["held"], found["fit"], int(described["block"]))


def _descriptions(samples: Numbered) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "name": samples[number].name,
            "count": samples[number].count,
            "joinable": samples[number].joinable,
            "arrays": [
                [name, _plain(array).dtype.str, list(array.shape)]
                for name, array in samples[number].feeds.items()
            ],
        }
        for number in sorted(samples)
    ]


def _name(kind: str, number: int, index: int) -> str:
    return f"input_{kind}_{number}_{index}"


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    """Strings as an array without Python objects."""
    return array.astype(np.str_) if array.dtype.hasobject else array
