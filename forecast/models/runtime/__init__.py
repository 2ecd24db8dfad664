"""Torch settings, ONNX, and tensors on disk."""
