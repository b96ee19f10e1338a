"""Change the form of a model or of a table, without quantizing anything else."""
