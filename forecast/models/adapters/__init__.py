"""Changes of a network for single series, stacked so that many are trained at once."""
