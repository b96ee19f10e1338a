"""Weighted operators as matrices: their rows, their biases, and what lies downstream of them."""
