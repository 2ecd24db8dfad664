"""Networks: torch, never Polars or Lightning."""
