"""Turn every way to end into a documented exit code, with one line on stderr for an error."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress

import calibrators.errors
from onnxq.cli.interrupts import INTERRUPTS
from onnxq.core.errors import ConfigError, OnnxqError, TargetError

DONE, FAILED, WRONG_USAGE = 0, 1, 2


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
    if sys.stdout is not None:
        sys.stdout.flush()
