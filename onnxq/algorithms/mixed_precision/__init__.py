"""Reach an accuracy goal with wider weights and with nodes kept in float."""
