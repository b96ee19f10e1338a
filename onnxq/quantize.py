"""``python -m onnxq.quantize MODEL OUTPUT [options]``: the same as ``onnxq quantize``."""

from __future__ import annotations

import sys

from onnxq.cli.commands import quantize as main

if __name__ == "__main__":
    sys.exit(main())
