"""Plan for a model and a target which edges are quantized, how, and why the others are not."""

from __future__ import annotations

from onnxq.planner.planner import make_plan

__all__ = ["make_plan"]
