"""Measurements, run side by side in one process and printed as ratios: the machines they run on are shared."""
