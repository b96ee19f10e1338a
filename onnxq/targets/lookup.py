"""A deployment target by its name, or by the path of a YAML file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from onnxq.core.errors import TargetError, did_you_mean
from onnxq.targets import TARGETS
from onnxq.targets.academic import academic_named
from onnxq.targets.target import Target
from onnxq.targets.yaml_file import SUFFIXES, read_target


def get_target(name: str) -> Target:
    """The target called ``name``, or the one that the YAML file of this name describes.

    ``academic-w3a5`` and the like are there for all numbers of bits from 2 to 8.

    Raises:
        TargetError: there is none, and the message lists the valid names; or the file is wrong.
    """
    if name.endswith(SUFFIXES):
        path = Path(name)
        return _from_file(path, path.stat().st_mtime_ns if path.is_file() else 0)
    found = TARGETS.get(name) or academic_named(name)
    if found is None:
        raise TargetError(
            f"unknown target {name!r}; valid targets: {', '.join(TARGETS)}, or a .yaml file"
            + did_you_mean(name, TARGETS)
        )
    return found


@cache
def _from_file(path: Path, changed: int) -> Target:
    """Asked for again and again in one run: the file is read anew only when it changed."""
    return read_target(path, TARGETS)
