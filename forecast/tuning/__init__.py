"""The search for settings of a training."""
