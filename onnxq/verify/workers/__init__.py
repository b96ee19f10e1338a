"""Programs that run in separate processes: each runs one runtime and writes its result as JSON.

They import nothing of onnxq. No module here may have a runtime's name, because Python looks here first.
"""
