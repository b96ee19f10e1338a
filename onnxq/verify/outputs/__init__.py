"""Compare outputs of a quantized model with those of the float model: by position, or as sets of rows."""
