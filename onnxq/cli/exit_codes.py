"""Turn every way to end into a documented exit code, with one line on stderr for an error."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from time import monotonic
from typing import Any, NoReturn

import calibrators.errors
from onnxq.core.errors import ConfigError, Interrupted, OnnxqError, TargetError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


BURST_SECONDS = 1.0
"""Signals that follow the first one so soon are the same request: a closing session sends several kinds."""

AGAIN_SECONDS = 0.01
"""How long after an interrupt was swallowed it is raised again."""


SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""The signals that end a run; Windows has no SIGHUP."""

HAS_TIMER = hasattr(signal, "setitimer")
"""Whether a swallowed interrupt can be raised again by a timer; else the next `Interrupts.check` does it."""


class Interrupts:
    """Let Ctrl-C, SIGTERM and SIGHUP raise `Interrupted` in the ``with`` block, and ignore them afterwards.

    Python swallows an exception that a signal raises in a ``__del__``, a callback of a weak reference or of
    a C library: it calls `sys.unraisablehook` instead. Then the interrupt is raised again a moment later.
    What is swallowed without a trace, as by an ``except`` of a library, is raised again by `check`.

    Attributes:
        seen: whether there was an interrupt. A library that is interrupted while it is imported may raise
            another error instead.
    """

    def __init__(self) -> None:
        self.seen = False
        self._raised = Interrupted()
        self._since = 0.0
        self._active = self._swallowed = False
        self._hook = sys.unraisablehook

    def __enter__(self) -> None:
        self._active = True
        self._handle(self._on_signal)
        if HAS_TIMER:
            signal.signal(signal.SIGALRM, self._on_alarm)
        sys.unraisablehook = self._on_swallowed

    def __exit__(self, *_: object) -> None:
        self.ignore()
        sys.unraisablehook = self._hook

    def check(self) -> None:
        """Raise `Interrupted` if an earlier one was swallowed."""
        if self._active and self.seen and not self._raised.heeded:
            self._raise()

    def ignore(self) -> None:
        """Ignore signals from here on, because the work is done."""
        if self._active:
            self._active = False
            self._handle(signal.SIG_IGN)
            if HAS_TIMER:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def finish(self) -> None:
        """Take the last chance to be interrupted: from here on signals are ignored."""
        self.check()
        self.ignore()

    def _on_signal(self, *_: object) -> None:
        again = self.seen and not self._raised.heeded and monotonic() - self._since < BURST_SECONDS
        if self._active and not again:
            self._since = monotonic()
            self._raise()

    def _on_alarm(self, *_: object) -> None:
        if self._active and self._swallowed:
            self._raise()

    def _raise(self) -> NoReturn:
        self.seen, self._swallowed, self._raised = True, False, Interrupted()
        raise self._raised

    def _on_swallowed(self, what: Any) -> None:
        if not isinstance(what.exc_value, Interrupted):
            self._hook(what)
            return
        self._swallowed = True
        if HAS_TIMER:
            signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)

    @staticmethod
    def _handle(handler: Any) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)


INTERRUPTS = Interrupts()
"""The interrupts of this process, if the command line is its main program."""


def run_guarded(action: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Run ``action`` on ``argv`` and return the exit code; an error is printed as one line on stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    own = argv is None  # signals are handled only if this is the main program
    try:
        with INTERRUPTS if own else nullcontext():
            action(arguments)
            _flush()
            INTERRUPTS.check()
    except SystemExit as end:  # argparse has printed the message
        return end.code if isinstance(end.code, int) else DONE
    except BrokenPipeError:  # the reader has closed the pipe
        return DONE
    except KeyboardInterrupt:
        return _fail("interrupted")
    except Exception as error:  # noqa: BLE001
        interrupted = own and INTERRUPTS.seen
        return _fail("interrupted") if interrupted else _failed(error, verbose="--verbose" in arguments)
    finally:
        close_output()
    return DONE


def _failed(error: Exception, verbose: bool) -> int:
    if verbose:
        with suppress(OSError):
            print(printable("".join(traceback.format_exception(error))), file=sys.stderr, end="")
    return _fail(_describe(error), WRONG_USAGE if isinstance(error, ConfigError | TargetError) else FAILED)


def _fail(message: str, code: int = FAILED) -> int:
    with suppress(OSError):  # the terminal may be gone
        print(f"error: {one_line(message)}", file=sys.stderr, flush=True)
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
    """Join the lines of a message, and make it `printable`."""
    return printable(" ".join(line.strip() for line in message.splitlines() if line.strip()))


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and newline, marks of direction, and halves of characters."""


def printable(text: str) -> str:
    r"""Write the control characters in ``text`` as escape sequences, like ``\x1b``.

    Names come from models and file systems: what they hold must not move the cursor, change the terminal, or
    turn the direction of the text around.
    """
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def close_output() -> None:
    """Flush stdout and stderr; drop what cannot be printed, because Python would end with exit code 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush() -> None:
    print(end="", flush=True)  # not stdout.flush(): there may be no stdout
