"""Turn every way to end into a documented exit code, with one line on stderr for an error."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

import calibrators.errors
from onnxq.core.errors import ConfigError, OnnxqError, TargetError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


class Interrupted(KeyboardInterrupt):
    """An interrupt of our own class: a plain KeyboardInterrupt at a bad moment still kills Python at exit."""


class Interrupts:
    """Let Ctrl-C and SIGTERM raise `Interrupted` in the ``with`` block, and ignore them afterwards.

    Attributes:
        seen: whether there was an interrupt. A library that is interrupted while it is imported may raise
            another error instead.
    """

    def __init__(self) -> None:
        self.seen = False

    def __enter__(self) -> None:
        self._handle(self._raise)

    def __exit__(self, *_: object) -> None:
        self._handle(signal.SIG_IGN)

    def _raise(self, *_: object) -> NoReturn:
        self.seen = True
        raise Interrupted

    @staticmethod
    def _handle(handler: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


def run_guarded(action: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run ``action`` on ``argv`` and return the exit code; an error is printed as one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    interrupts = Interrupts()
    try:
        with (
            interrupts if argv is None else nullcontext()
        ):  # signals are handled only if this is the main program
            action(arguments)
            _flush()
    except SystemExit as end:  # argparse has printed the message
        return end.code if isinstance(end.code, int) else DONE
    except BrokenPipeError:  # the reader has closed the pipe
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except Exception as error:  # noqa: BLE001
        return _fail("interrupted") if interrupts.seen else _failed(error, verbose="--verbose" in arguments)
    finally:
        close_stdout()
    return DONE


def _failed(error: Exception, verbose: bool) -> int:
    if verbose:
        traceback.print_exception(error)
    return _fail(_describe(error), WRONG_USAGE if isinstance(error, ConfigError | TargetError) else FAILED)


def _fail(message: str, code: int = FAILED) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def _describe(error: Exception) -> str:
    if isinstance(error, OnnxqError | calibrators.errors.CalibrationError):
        return str(error)
    if isinstance(error, OSError):
        return ": ".join(str(part) for part in (error.filename, error.strerror) if part) or str(error)
    if isinstance(error, MemoryError):
        return "out of memory: try a smaller --batch-size"
    return (
        f"this is a bug in onnxq, please report it ({type(error).__name__}: {error}); "
        "the same command with --verbose shows where it happened"
    )


def one_line(message: str) -> str:
    """Join the lines of a message."""
    return " ".join(line.strip() for line in message.splitlines() if line.strip())


def close_stdout() -> None:
    """Flush stdout; drop output that cannot be printed, because Python would complain about it at exit."""
    try:
        _flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush() -> None:
    print(end="", flush=True)  # not stdout.flush(): there may be no stdout
