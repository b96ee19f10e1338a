"""Nodes kept in float where float is faster, by times measured on this machine."""
