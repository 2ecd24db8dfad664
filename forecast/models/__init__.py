"""Networks and training steps: torch and Lightning, never Polars."""
