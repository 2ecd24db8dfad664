"""Backtesting: forecasts from past cutoffs, scored beside baselines."""
