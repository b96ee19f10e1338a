"""Signals: a run ends as interrupted, also when Python swallows the exception, and leaves nothing half-written."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli import SIGNALS, environment, listen, python, save_data, save_model

SCRIPT = """
import ctypes, gc, os, signal, sys, time, weakref
from onnxq.cli.exit_codes import run_guarded
from onnxq.cli.terminal import progress

going = []

def arrive(*_):
    os.kill(os.getpid(), signal.{number})
    time.sleep(0.05)

class Thing:
    pass

class Last:
    def __del__(self):
        arrive()

def weak_callback():
    thing = Thing()
    keep = weakref.ref(thing, arrive)
    del thing

def finalizer():
    Last()

def c_callback():
    kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    numbers = (ctypes.c_int * 2)(2, 1)
    ctypes.CDLL(None).qsort(numbers, 2, 4, kind(lambda *_: arrive() or 0))

def collector():
    gc.callbacks.append(arrive)
    gc.collect()

def generator():
    def items():
        try:
            yield
        finally:
            arrive()
    next(items())

def library():
    try:
        arrive()
    except BaseException:
        pass

def action(_):
    {how}()
    gc.callbacks.clear()
    {after}

sys.argv = ["onnxq"]
code = run_guarded(action, None)
print("went on" if going else "", end="")
sys.exit(code)
"""

WAITS = "for _ in range(200): time.sleep(0.01)\n    going.append(1)"
"""The rest of a run that asks for nothing."""

REPORTS = "with progress(quiet=True) as told: told('a stage')\n    going.append(1)"
"""The rest of a run that reports its progress."""

ENDS = ""


def after_a_signal(how, after, number):
    return python("-c", SCRIPT.format(how=how, after=after, number=number.name), preexec_fn=listen)


@pytest.mark.parametrize("how", ["weak_callback", "finalizer", "c_callback", "collector", "generator"])
@pytest.mark.parametrize("after", [WAITS, ENDS])
def test_an_interrupt_that_python_swallows_comes_again(how, after):
    done = after_a_signal(how, after, SIGNALS[len(how) % 3])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")


@pytest.mark.parametrize("after", [REPORTS, ENDS])
def test_an_interrupt_that_a_library_swallows_comes_again(after):
    done = after_a_signal("library", after, signal.SIGTERM)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: interrupted\n")


CLEANUP = """
import os, signal, sys, time
from onnxq.cli.exit_codes import run_guarded

def action(_):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.05)
        print("tidy")

sys.argv = ["onnxq"]
sys.exit(run_guarded(action, None))
"""


def test_a_second_signal_does_not_stop_the_tidying_up():
    """A session that ends sends both."""
    done = python("-c", CLEANUP, preexec_fn=listen)
    assert (done.returncode, done.stdout, done.stderr) == (1, "tidy\n", "error: interrupted\n")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    save_model(tmp_path / "m.onnx")
    save_data(tmp_path / "d.npz", count=40)
    (tmp_path / "o.onnx").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("moment", [0.1, 0.35, 0.6, 0.8, 0.95, 1.0])
def test_at_any_moment_all_files_are_there_or_none(folder, moment):
    """The moment is a share of the time that an undisturbed run takes."""
    before = {path.name for path in folder.iterdir()}
    options = ["--data", "d.npz", "--report", "r.html", "--table", "t.json", "--save-config", "c.yaml"]
    command = [sys.executable, "-m", "onnxq.quantize", "m.onnx", "o.onnx", *options, "--verbose"]
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=listen,
    )
    first = process.stderr.readline()  # the imports are done
    assert first == "reading the model\n"
    time.sleep(max(0.0, moment * (time.monotonic() - started)))
    process.send_signal(SIGNALS[int(moment * 100) % 3])
    said = process.stderr.read()
    names = {path.name for path in folder.iterdir()}
    if process.wait() == 0:
        assert names == before | {"r.html", "t.json", "c.yaml"}
    else:
        assert said.splitlines()[-1] == "error: interrupted"
        assert process.returncode == 1
        assert names == before
        assert Path("o.onnx").read_bytes() == b"old"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_error_that_cannot_be_printed_has_its_exit_code():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "onnxq.cli", "inspect", "missing.onnx"]
        done = subprocess.run(command, stderr=full, env=environment() | {"PYTHONUNBUFFERED": ""}, check=False)
    assert done.returncode == 1
