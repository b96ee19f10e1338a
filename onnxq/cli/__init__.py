"""The command line, ``python -m onnxq.quantize`` and ``onnxq``. It imports heavy modules late."""

from __future__ import annotations

from onnxq.cli.commands import main, quantize

__all__ = ["main", "quantize"]
