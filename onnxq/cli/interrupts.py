"""Let signals end a run as interrupted, also where Python or a library swallows the exception."""

from __future__ import annotations

import signal
import sys
from time import monotonic
from typing import Any, NoReturn

from onnxq.core.errors import Interrupted

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
