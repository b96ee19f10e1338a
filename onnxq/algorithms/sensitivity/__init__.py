"""Sensitivity analysis: the output error of each quantization point, quantized alone."""
