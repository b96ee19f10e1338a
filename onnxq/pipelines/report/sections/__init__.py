"""The sections of the report, one a file: a function `Report -> Blocks`."""
