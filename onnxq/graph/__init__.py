"""ONNX files and graphs: reading, writing, cleaning, Q/DQ in and out."""
