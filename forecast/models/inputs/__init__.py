"""Inputs of a network: batches of windows, their scales, and their frames of reference.

Nothing here has weights; those are in `forecast.models.network`.
"""
