"""Metrics of a task, measured on outputs of a model: built-in ones, one family a file, or the user's."""
