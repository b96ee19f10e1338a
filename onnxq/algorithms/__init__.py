"""Algorithms that make a quantized model more accurate or faster; ``corrections.py`` lists the corrections."""
