"""Passes that undo what other tools leave in a float model: fusions of ONNX Runtime, training mode."""
