"""Samples -> statistics -> scales and zero points; and calibration tables."""
