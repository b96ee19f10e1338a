"""Calibration: stream samples through ONNX Runtime, collect statistics, turn them into ranges."""
