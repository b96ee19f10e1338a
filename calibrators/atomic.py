"""Write files atomically: each appears complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def drafts(paths: Iterable[Path]) -> Iterator[Mapping[Path, Path]]:
    """Give a temporary draft file for each path; if the block succeeds, each draft replaces its path.

    The drafts lie in the folders of their paths and are always removed in the end. OSErrors are passed on.
    """
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in paths}
    try:
        yield beside
        for path, draft in beside.items():
            draft.replace(path)
    finally:
        for draft in beside.values():
            with suppress(OSError):
                draft.unlink(missing_ok=True)
