"""Merge the parts of a calibration: the same bytes as of one run, or an error that names the part."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import calibrators.errors
from calibrators.errors import shorten
from calibrators.statistics import Statistics
from calibrators.statistics.archive import read_header
from calibrators.statistics.kept_inputs import KeptInputs
from onnxq.calibration.sample_split import ReservoirSample
from onnxq.calibration.shards import Shard, differences
from onnxq.core.errors import CalibrationError
from onnxq.core.progress import Progress, silent

logger = logging.getLogger(__name__)

Headers = Mapping[Path, Mapping[str, object]]


def merge_parts(
    files: Sequence[Path], *, allow_missing: bool = False, progress: Progress = silent
) -> Statistics:
    """Merge the files of all parts, one at a time, in any order.

    Args:
        files: the files.
        allow_missing: whether parts may be missing or incomplete; a warning then says what is lost.
        progress: called with the number of parts done.

    Raises:
        CalibrationError: a file is no part, or a part is missing, doubled, incomplete, or of another
            calibration.
    """
    headers = {file: read_header(file) for file in files}
    if len(headers) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise CalibrationError(f"{twice} is given twice: leave one out")
    shards = _checked(headers, allow_missing)
    merged = _Merged()
    for done, file in enumerate(sorted(files, key=lambda file: shards[file].index)):
        merged.add(file, Statistics.load(file))
        progress("merging", done, len(files))
    result = merged.result()
    result.complete = len(shards) == _count(shards) and all(bool(h["complete"]) for h in headers.values())
    if not result.samples:
        raise CalibrationError(f"no part of {shorten(list(map(str, files)))} holds a sample")
    return result


def _count(shards: Mapping[Path, Shard]) -> int:
    return next(iter(shards.values())).count


def _checked(headers: Headers, allow_missing: bool) -> dict[Path, Shard]:
    """Return the shard of each file; raise CalibrationError if they do not make up one calibration."""
    if not headers:
        raise CalibrationError("there are no parts to merge: give the files of onnxq calibrate --shard I/N")
    shards = {file: _shard(file, header) for file, header in headers.items()}
    (first, expected), *others = headers.items()
    for file, header in others:
        if found := list(_foreign(header, expected)):
            raise CalibrationError(
                f"{file} is a part of another calibration than {first}: {'; '.join(found)}. Leave it out, or "
                "calibrate that part again with the same command"
            )
        if shards[file].count != shards[first].count:
            raise CalibrationError(
                f"{file} is part {shards[file]}, but {first} is part {shards[first]}: all parts must be of "
                "as many"
            )
    _refuse_doubled(shards)
    _tell_missing(headers, shards, allow_missing)
    return shards


def _shard(file: Path, header: Mapping[str, object]) -> Shard:
    part = header.get("part")
    if not isinstance(part, Mapping):
        raise CalibrationError(
            f"{file} is no part: it holds the statistics of a whole run. Parts come from onnxq calibrate "
            "--shard I/N"
        )
    index, count = part["shard"]
    return Shard(int(index), int(count))


def _foreign(header: Mapping[str, object], expected: Mapping[str, object]) -> Iterator[str]:
    """Yield in words why two parts are not of the same calibration."""
    if header.get("fingerprint") != expected.get("fingerprint"):
        yield "the model differs"
    one, other = header["part"], expected["part"]
    assert isinstance(one, Mapping)
    assert isinstance(other, Mapping)
    yield from differences(one, other)
    if header.get("tensors") != expected.get("tensors"):
        yield "the observed tensors differ"


def _refuse_doubled(shards: Mapping[Path, Shard]) -> None:
    seen: dict[int, Path] = {}
    for file, shard in shards.items():
        if shard.index in seen:
            raise CalibrationError(
                f"part {shard} is given twice: {seen[shard.index]} and {file}: leave one out"
            )
        seen[shard.index] = file


def _tell_missing(headers: Headers, shards: Mapping[Path, Shard], allow_missing: bool) -> None:
    """Refuse or report parts that are missing or incomplete."""
    count, there = _count(shards), {shard.index for shard in shards.values()}
    absent = [str(i) for i in range(1, count + 1) if i not in there]
    broken = [str(file) for file, header in headers.items() if not header["complete"]]
    lost = []
    if absent:
        numbers = _numbers(shards, headers, map(int, absent))
        lost.append(f"missing parts (of {count}): {shorten(absent)}, with samples {shorten(numbers)}")
    if broken:
        lost.append(f"parts that were interrupted: {shorten(broken)}")
    if lost and not allow_missing:
        raise CalibrationError(
            f"{'; '.join(lost)}. Calibrate again with the same command and --shard, or merge what there is "
            "with --allow-missing"
        )
    for text in lost:
        logger.warning("%s: the statistics lack these samples", text)


def _numbers(shards: Mapping[Path, Shard], headers: Headers, absent: Iterable[int]) -> list[str]:
    """List the samples of absent parts, from their first to their last number."""
    part = next(iter(headers.values()))["part"]
    assert isinstance(part, Mapping)
    count = _count(shards)
    ranges = [Shard(i, count).numbers(int(part["samples"]), int(part.get("block", 1))) for i in absent]
    return [f"{each.start} to {each.stop - 1}" for each in ranges if each] or ["none"]


class _Merged:
    """The parts so far. Only one part is in memory beside them."""

    def __init__(self) -> None:
        self._statistics: Statistics | None = None
        self._inputs: KeptInputs | None = None

    def add(self, file: Path, part: Statistics) -> None:
        """Add one part; raise CalibrationError if it does not fit the others."""
        try:
            self._statistics = (
                part if self._statistics is None else self._statistics.merge(part, same_stream=True)
            )
        except calibrators.errors.CalibrationError as error:
            raise CalibrationError(f"{file}: {error}") from error
        self._inputs = merged_inputs(self._inputs, part.inputs)

    def result(self) -> Statistics:
        """Return the statistics of all parts."""
        assert self._statistics is not None
        self._statistics.inputs, self._statistics.part = self._inputs, {}
        return self._statistics


def merged_inputs(one: KeptInputs | None, other: KeptInputs | None) -> KeptInputs | None:
    """Join the inputs that travel with two parts, thinned out as those of one run."""
    if one is None or other is None:
        return one or other
    kept = ReservoirSample()
    for inputs in (one, other):
        for place, sample in inputs.fit.items():
            kept.take(place, sample)
    return KeptInputs({**one.held, **other.held}, dict(kept.places), one.block)
