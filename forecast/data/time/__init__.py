"""Frequencies, the grid of a panel, and what follows from its frequency alone."""
