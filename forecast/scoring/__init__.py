"""Forecasts on disk and in tables: jobs that resume, carried state, manifests, and what was scored."""
