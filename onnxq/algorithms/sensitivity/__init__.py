"""Sensitivity analysis: the output error of each group of quantization points, quantized alone."""
