"""Pairs of QuantizeLinear and DequantizeLinear: insert, read and strip them, and what stands for them."""
