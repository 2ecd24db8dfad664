"""Forecasts of a hierarchy that add up."""
