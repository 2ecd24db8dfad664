"""Fine-tuning: selection of series, search for changes per series, and the gate that keeps a change only if it helps.

The changes as tensors are in `forecast.models.adapters`.
"""
