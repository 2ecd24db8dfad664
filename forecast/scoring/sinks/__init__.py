"""Where forecasts are written: Parquet, Delta Lake, SQL."""
