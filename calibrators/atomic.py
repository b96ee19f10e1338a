"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def drafts(paths: Iterable[Path]) -> Iterator[Mapping[Path, Path]]:
    """For each path a draft beside it to write to; if the block ends well, drafts take the paths' places.

    No draft is left behind. What the operating system refuses is raised as it is.
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
