"""Pretraining of the universal network on a stream of series, and zero-shot models for a panel."""
