"""Output of `forecast monitor`: folder, summary, and rollback."""
