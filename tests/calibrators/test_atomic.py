"""Files of a block appear together or not at all."""

import errno
import os
import threading
from pathlib import Path

import pytest

from calibrators.atomic import NotWrittenError, drafts, real, staged, together


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "sub").mkdir()
    return tmp_path


def content(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write(text, *paths):
    with staged(paths) as beside:
        for path in paths:
            beside[path].write_text(text)


def test_all_files_of_a_block_appear_at_its_end(folder):
    with together():
        write("a", folder / "old")
        write("b", folder / "new", folder / "sub" / "new")
        with together():
            write("c", folder / "inner")
        assert not (folder / "inner").exists()
        assert (folder / "old").read_text() == "old"
    assert content(folder) == {"old": "a", "new": "b", "sub/new": "b", "inner": "c"}
    assert len(list(folder.rglob("*"))) == 5  # no trace of the drafts


def test_some_files_do_not_wait(folder):
    def fail():
        with together():
            write("a", folder / "old")
            with drafts([folder / "log"]) as beside:
                beside[folder / "log"].write_text("kept")
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    assert content(folder) == {"old": "old", "log": "kept"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("place", ["block", "before"])
def test_a_failure_leaves_everything_as_it_was(folder, error, place):
    def fail(where):
        if where == place:
            raise error

    def block():
        with together(lambda: fail("before")):
            write("a", folder / "old", folder / "new")
            fail("block")

    with pytest.raises(error):
        block()
    assert content(folder) == {"old": "old"}
    assert len(list(folder.iterdir())) == 2


def test_a_draft_that_failed_does_not_appear_with_the_others(folder):
    def fail():
        with staged([folder / "old"]) as beside:
            beside[folder / "old"].write_text("half")
            raise ValueError

    with together():
        write("a", folder / "new")
        with pytest.raises(ValueError):
            fail()
    assert content(folder) == {"old": "old", "new": "a"}


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_what_was_moved_is_put_back_when_the_next_cannot_be(folder, monkeypatch, error, links, number):
    (folder / "sub" / "old").write_text("older")
    replace, moved = Path.replace, []

    def failing(self, where):
        moved.append(where)
        if len(moved) == number + 1:
            raise error
        return replace(self, where)

    if not links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((NotWrittenError, KeyboardInterrupt)), together():
        write("a", folder / "old", folder / "new", folder / "sub" / "old")
    assert len(moved) > number
    assert content(folder) == {"old": "old", "sub/old": "older"}
    assert len(list(folder.rglob("*"))) == 3


def test_threads_write_the_same_file(folder):
    """The draft of one is not moved by another."""
    failed, gate = [], threading.Barrier(6)

    def work(text):
        try:
            for _ in range(20):
                gate.wait()
                write(text * 1000, folder / "old")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (folder / "old").read_text() in {letter * 1000 for letter in "abcdef"}
    assert content(folder).keys() == {"old"}


def test_a_link_is_written_through(folder):
    (folder / "link").symlink_to("sub/new")
    write("a", folder / "link")
    assert (folder / "link").is_symlink()
    assert (folder / "sub" / "new").read_text() == "a"


def test_a_link_to_itself_is_an_error_of_the_system(folder):
    (folder / "one").symlink_to("two")
    (folder / "two").symlink_to("one")
    for name in ("one", "two"):
        with pytest.raises(OSError, match="symbolic links"):
            real(folder / name)


def test_the_longest_name_is_not_too_long(folder):
    name = "n" * 255
    for text in ("a", "b"):
        write(text, folder / name)
    assert content(folder)[name] == "b"


class Windows:
    """The module ``os`` as on Windows: no handle of a folder, and fsync wants one that may write."""

    def __init__(self):
        self.flags = {}

    def __getattr__(self, name):
        return getattr(os, name)

    def open(self, path, mode):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        handle = os.open(path, mode)
        self.flags[handle] = mode
        return handle

    def fsync(self, handle):
        if self.flags[handle] & (os.O_RDWR | os.O_WRONLY) == 0:
            raise OSError(errno.EBADF, "Bad file descriptor")
        os.fsync(handle)


def test_files_are_written_where_folders_cannot_be_flushed(folder, monkeypatch):
    system = Windows()
    monkeypatch.setattr("calibrators.atomic.os", system)
    monkeypatch.setattr("calibrators.atomic.WINDOWS", True)
    write("new", folder / "old", folder / "sub" / "more")
    assert content(folder) == {"old": "new", "sub/more": "new"}
    assert system.flags
