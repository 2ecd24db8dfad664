"""Explanation of single forecasts: attributions to inputs by integrated gradients or occlusion."""
