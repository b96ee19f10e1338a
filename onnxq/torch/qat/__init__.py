"""Quantization-aware training: prepare, train, convert."""
