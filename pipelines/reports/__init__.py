"""Subject and content of a report."""
