"""The command line, ``python -m onnxq.quantize`` and ``onnxq``. It imports nothing heavy: help is fast."""

from __future__ import annotations

from onnxq.cli.commands import main, quantize

__all__ = ["main", "quantize"]
