"""Make .venv with all that the demo, the tests and the checks need; do nothing if it is up to date.

It uses only the standard library, because it runs before anything is installed. pip reads its own settings:
to get the CPU build of PyTorch on Linux, which is much smaller, name an index that has it in
``PIP_EXTRA_INDEX_URL``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "onnxq-installed"
SOURCES = ("setup.cfg", "pyproject.toml", "constraints.txt")

EXTRAS = ("torch", "demo", "docs", "dev", "test")
"""The extras that are always installed. ``ONNXQ_EXTRAS`` adds the large runtimes that some tests use."""


def fingerprint() -> str:
    """Compute a hash of the requirements and of the checkout's path; a new one requires installing."""
    digest = hashlib.sha256(f"{ROOT} {os.environ.get('ONNXQ_EXTRAS', '')}".encode())
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def installed() -> str:
    """Read the fingerprint of .venv; empty if it is not completely installed."""
    try:
        return STAMP.read_text("utf-8")
    except OSError:
        return ""


def install() -> None:
    """Install everything at the versions of constraints.txt, with one line of progress per package."""
    extras = ",".join((*EXTRAS, *os.environ.get("ONNXQ_EXTRAS", "").split()))
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command = [*pip, "install", "-c", "constraints.txt", "-e", f".[{extras}]"]
    log = VENV / "install.log"
    with log.open("w", encoding="utf-8") as lines:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            lines.write(line)
            show(line)
    if process.wait() != 0:
        tail = "\n".join(log.read_text("utf-8").splitlines()[-15:])
        sys.exit(f"\nerror: pip could not install the environment:\n{tail}\n(whole log: {log})")


def show(line: str) -> None:
    """Show briefly what pip is doing: each package, and the long step at the end."""
    words = line.split()
    if line.startswith("Collecting") and len(words) > 1:
        progress(words[1].split(";")[0])
    elif line.startswith("Installing collected packages"):
        progress("unpacking them all")


def progress(text: str) -> None:
    """Print progress: on a terminal one line that is overwritten; in a log only the long step."""
    if sys.stderr.isatty():
        print(f"\r\033[K  installing: {text[:60]}", end="", file=sys.stderr, flush=True)
    elif " " in text:
        print(f"  installing: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Make or renew the environment; other processes that start at the same time wait for the first."""
    VENV.mkdir(exist_ok=True)
    with (VENV / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = fingerprint()
        if installed() == wanted:
            return
        start = time.monotonic()
        print(f"Setting up {VENV} (once; PyTorch is large, so some minutes):", file=sys.stderr, flush=True)
        STAMP.unlink(missing_ok=True)
        if not (VENV / "bin" / "python").exists():
            venv.create(VENV, with_pip=True, symlinks=True)
        install()
        STAMP.write_text(wanted, "utf-8")
    end = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{end}  ready after {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
