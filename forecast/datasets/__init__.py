"""Public data for demo, notebooks and benchmarks."""
