"""Smaller and faster models: distillation and ONNX."""
