"""Flows from file to file, one for each command; ``static.py`` is the one to read first."""
