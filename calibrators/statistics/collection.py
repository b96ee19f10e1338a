"""The statistics of many tensors: the result of a calibration run, which can be saved and merged."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from calibrators.errors import CalibrationError, shorten
from calibrators.fingerprint import added
from calibrators.statistics import archive
from calibrators.statistics.kept_inputs import KeptInputs
from calibrators.statistics.tensor import TensorStatistics

__all__ = ["Statistics", "TensorStatistics"]


class Statistics(Mapping[str, TensorStatistics]):
    """Statistics by tensor name.

    Attributes:
        samples: number of samples.
        span: the samples' numbers in the stream of data: the first number, and one more than the last.
            Samples that were skipped have numbers too.
        complete: whether the data was read to its end.
        fingerprint: fingerprint of the model, see `calibrators.fingerprint`; "" if unknown.
        inputs: samples of the data that travel with the statistics; None: none do.
        part: what part of a larger calibration this is, as JSON values; empty: it is no part.
        checksum: checksum of the samples and their numbers; "" if unknown, as after merging two streams.
    """

    def __init__(
        self,
        tensors: Mapping[str, TensorStatistics],
        samples: int,
        *,
        span: tuple[int, int] | None = None,
        complete: bool = True,
        fingerprint: str = "",
        checksum: str = "",
    ) -> None:
        self._tensors = dict(tensors)
        self.samples = samples
        self.span = span or (0, samples)
        self.complete = complete
        self.fingerprint = fingerprint
        self.checksum = checksum
        self.inputs: KeptInputs | None = None
        self.part: Mapping[str, Any] = {}

    def __getitem__(self, name: str) -> TensorStatistics:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The tensors without any finite value: no method can give them a range."""
        return tuple(name for name, tensor in self.items() if not tensor.count)

    def merge(self, other: Statistics, *, same_stream: bool = False) -> Statistics:
        """Merge with the statistics of other samples, from the same stream of data or another one.

        Parts of one stream may come in any order. If the numbers of ``other``'s samples overlap with those
        of ``self``, they come from another stream, and are taken to follow the samples of ``self``.

        Args:
            other: the statistics of other samples.
            same_stream: both are parts of one stream, even if their spans overlap.

        Raises:
            CalibrationError: the two do not describe the same tensors of the same model.
        """
        self._require_same_tensors(other)
        apart = other.span[0] >= self.span[1] or other.span[1] <= self.span[0]
        later = 0 if same_stream or apart or not self.samples else self.span[1]
        try:
            tensors = {name: tensor.merge(other[name], later) for name, tensor in self.items()}
        except ValueError as error:
            raise CalibrationError(f"these statistics cannot be merged: {error}") from error
        first, last = other.span[0] + later, other.span[1] + later
        return Statistics(
            tensors,
            self.samples + other.samples,
            span=(min(self.span[0], first), max(self.span[1], last)),
            complete=self.complete and other.complete,
            fingerprint=self.fingerprint,
            checksum=added(self.checksum, other.checksum) if same_stream else "",
        )

    def _require_same_tensors(self, other: Statistics) -> None:
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            raise CalibrationError("statistics of different models cannot be merged")
        different = sorted(self.keys() ^ other.keys())
        if different:
            raise CalibrationError(
                "statistics of different tensors cannot be merged; only one of the two has "
                f"{shorten(different)}"
            )

    def save(self, path: str | os.PathLike[str], *, complete: bool | None = None) -> None:
        """Write an ``.npz`` file, complete or not at all; the same statistics give the same bytes.

        Args:
            path: the file; it is replaced only when all is written.
            complete: if given, stored instead of the attribute ``complete``.

        Raises:
            CalibrationError: the file cannot be written.
        """
        header = {
            "samples": self.samples,
            "span": list(self.span),
            "complete": self.complete if complete is None else complete,
            "fingerprint": self.fingerprint,
            "checksum": self.checksum,
            "tensors": list(self),
            **({"part": dict(self.part)} if self.part else {}),
        }
        archive.write(Path(path), header, list(self.values()), self.inputs)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Statistics:
        """Read what `save` wrote.

        Raises:
            CalibrationError: the file is missing or damaged, or holds something else.
        """
        header, tensors, inputs = archive.read(Path(path))
        try:
            first, last = map(int, header["span"])
            found = Statistics(
                dict(zip(map(str, header["tensors"]), tensors, strict=True)),
                int(header["samples"]),
                span=(first, last),
                complete=bool(header["complete"]),
                fingerprint=str(header["fingerprint"]),
                checksum=str(header["checksum"]),
            )
            found.inputs, found.part = inputs, dict(header.get("part", {}))
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise archive.damaged(Path(path), error) from error
