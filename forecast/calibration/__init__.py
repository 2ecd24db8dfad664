"""Calibration: quantiles are shifted until their empirical coverage matches the nominal levels."""
