"""Programs that run in processes of their own: each asks one runtime and writes JSON.

They import nothing of ours, and no module here may have a runtime's name: Python looks here first.
"""
