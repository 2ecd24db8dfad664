"""Quantiles moved until empirical coverage matches the nominal level."""
