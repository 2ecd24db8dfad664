"""What a network reads: batches of windows, their scales, and the frame that they are seen in.

Nothing here has weights; those are in `forecast.models.network`.
"""
