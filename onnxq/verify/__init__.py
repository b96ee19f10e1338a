"""Check whether a Q/DQ model is legal, accurate and fast, and whether it runs in integers."""
