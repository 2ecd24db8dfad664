"""What changed from one forecast to a later one, and why."""
