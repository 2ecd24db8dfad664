"""The linear skip and its relatives: ridge regression, exponential smoothing, Markov tables of classes."""
