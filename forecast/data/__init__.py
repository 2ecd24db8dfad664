"""From a user's table to a panel: Polars and NumPy, never torch."""
