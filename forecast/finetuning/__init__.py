"""Series of their own: which, what is changed, and the gate that keeps a change only where it helps.

The changes themselves, as tensors, are in `forecast.models.adapters`.
"""
