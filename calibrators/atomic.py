"""Write files atomically: all files of a block appear complete, or none does. Recognize special files."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

WINDOWS = os.name == "nt"

NOT_PLAIN = "is a pipe, a socket or a device"
"""What `is_special` finds, for messages."""


class NotWrittenError(OSError):
    """The system refuses to make the draft of a file, or to put it in its place; ``filename`` is its path."""


@contextmanager
def drafts(paths: Iterable[Path]) -> Iterator[Mapping[Path, Path]]:
    """Give a draft file for each path; if the block succeeds, the drafts replace their paths, all or none.

    A draft has the name of its file and lies in a temporary folder beside it, which no other thread or
    process uses; the folder is always removed in the end. A link is written through. A draft that the block
    does not make is left out.

    Args:
        paths: the files to write, in the order in which they appear.

    Raises:
        NotWrittenError: a draft cannot be made or moved; all files are then as they were.
    """
    block = _Block()
    try:
        yield block.add(paths)
        block.publish()
    finally:
        block.remove()


@contextmanager
def staged(paths: Iterable[Path]) -> Iterator[Mapping[Path, Path]]:
    """Do as `drafts` does, but in a `together` block the files appear only at its end, with all others."""
    block = _together.get()
    if block is None:
        with drafts(paths) as beside:
            yield beside
        return
    beside = block.add(paths)
    try:
        yield beside
    except BaseException:
        block.discard(beside)
        raise


@contextmanager
def together(before: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let all files that are `staged` in the block appear at its end, or none if it fails.

    Such a block inside another one leaves its files to the outer one.

    Args:
        before: called when all drafts are made, before the first one is moved; an error that it raises
            stops the writing.

    Raises:
        NotWrittenError: as for `drafts`.
    """
    if _together.get() is not None:
        yield
        return
    block = _Block()
    token = _together.set(block)
    try:
        yield
        before()
        block.publish()
    finally:
        _together.reset(token)
        block.remove()


def is_special(path: Path) -> bool:
    """Whether ``path`` is a pipe, a socket or a device: reading it may wait, or go on, forever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # it is not there, or is no path: whoever reads it will say so
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def real(path: Path) -> Path:
    """Follow links, also to a file that does not exist yet.

    Raises:
        OSError: a link leads to itself.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise
    return Path(os.path.realpath(path))


class _Block:
    """Drafts, and the paths where they will appear."""

    def __init__(self) -> None:
        self._folders: list[Path] = []
        self._places: dict[Path, Path] = {}

    def add(self, paths: Iterable[Path]) -> Mapping[Path, Path]:
        """Give a draft for each path: those of one folder lie in one folder."""
        goals = {path: real(path) for path in paths}
        beside = {folder: self._folder(folder) for folder in {goal.parent for goal in goals.values()}}
        made = {path: beside[goal.parent] / goal.name for path, goal in goals.items()}
        self._places |= {made[path]: goal for path, goal in goals.items()}
        return made

    def _folder(self, parent: Path) -> Path:
        folder = parent / f".{uuid.uuid4().hex}.part"
        self._folders.append(folder)  # first of all: it is removed even if an interrupt follows at once
        with _naming(folder):
            folder.mkdir()
        return folder

    def discard(self, made: Mapping[Path, Path]) -> None:
        """Forget drafts; they are removed with all others."""
        for draft in made.values():
            del self._places[draft]

    def publish(self) -> None:
        """Move every draft to its place; if one cannot be moved, put back what was there."""
        ready = {draft: place for draft, place in self._places.items() if draft.exists()}
        for draft, place in ready.items():
            with _naming(place):
                _finish(draft, place)
        try:
            for draft, place in ready.items():
                with _naming(place):
                    draft.replace(place)
        except BaseException:
            for draft, place in ready.items():
                with suppress(OSError):
                    _put_back(draft, place)
            raise
        for folder in {place.parent for place in ready.values()}:
            with suppress(OSError):  # not every file system can; the files themselves are safe
                _sync(folder)

    def remove(self) -> None:
        """Remove all that is left of the drafts."""
        for folder in self._folders:
            shutil.rmtree(folder, ignore_errors=True)


_together: ContextVar[_Block | None] = ContextVar("together", default=None)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an OSError into one that names the file to be written."""
    try:
        yield
    except OSError as error:
        raise NotWrittenError(error.errno, error.strerror or str(error), str(path)) from error


def _finish(draft: Path, place: Path) -> None:
    """Store a draft safely, with the mode of the file that it replaces, and keep that file beside it."""
    _sync(draft)
    if not place.exists():
        return
    shutil.copymode(place, draft)
    try:
        os.link(place, _kept(draft))
    except OSError:  # a file system without links
        shutil.copy2(place, _kept(draft))


def _put_back(draft: Path, place: Path) -> None:
    """Restore what was in the place of a draft that was moved there already."""
    if draft.exists():
        return
    if _kept(draft).exists():
        _kept(draft).replace(place)
    else:
        place.unlink(missing_ok=True)


def _kept(draft: Path) -> Path:
    """The path, beside a draft, that keeps the file which it replaces.

    Its name is short, because the name of the draft may be as long as the file system allows.
    """
    return draft.with_name(f"{hash(draft.name)}.old")


def _sync(path: Path) -> None:
    """Flush a file or directory to the disk; Windows flushes no directories, and only files open to write."""
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
