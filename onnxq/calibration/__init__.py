"""Calibration: samples -> statistics -> scales and zero points; and calibration tables."""
