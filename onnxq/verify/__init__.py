"""Is a Q/DQ model legal, accurate and fast, and does it run in integers?"""
