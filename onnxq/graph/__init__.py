"""ONNX files and graphs: read, write and clean them, insert Q/DQ pairs and strip them."""
