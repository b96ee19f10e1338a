"""``python -m onnxq.quantize MODEL OUTPUT [options]``: the same as ``onnxq quantize``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onnxq.cli import run


def main(argv: Sequence[str] | None = None) -> int:
    """Quantize as the arguments say; returns the exit code (0 done, 1 failed, 2 wrong usage)."""
    arguments = sys.argv[1:] if argv is None else argv
    return run("quantize", arguments, prog="python -m onnxq.quantize")


if __name__ == "__main__":
    sys.exit(main())
