"""onnxq: an offline quantizer, float ONNX in, int8 ONNX out."""
