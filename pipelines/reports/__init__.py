"""What a report is about, and what is in it."""
