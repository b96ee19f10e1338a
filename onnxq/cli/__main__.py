"""Run ``python -m onnxq.cli``, which does the same as ``onnxq``."""

from __future__ import annotations

import sys

from onnxq.cli import main

if __name__ == "__main__":
    sys.exit(main())
