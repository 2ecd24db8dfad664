"""Demo and replay."""
