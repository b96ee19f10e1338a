"""A goal, reached with wider weights and with nodes kept in float."""
