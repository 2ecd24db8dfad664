"""Training of the universal network on a stream of series."""
