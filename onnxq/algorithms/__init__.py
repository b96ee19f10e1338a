"""Algorithms that make quantized models more accurate or faster; ``corrections.py`` lists the corrections."""
