"""Data in, ranges out: stream samples through ONNX Runtime, keep statistics, turn them into ranges."""
