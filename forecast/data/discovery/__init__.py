"""Discovery of what a file holds: its format, and the columns of time, series and target."""
