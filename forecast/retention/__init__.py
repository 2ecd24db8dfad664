"""Retention: which versions, runs, forecasts and states may go, and their removal."""
