"""What the commands print: tables, outlines, JSON."""
