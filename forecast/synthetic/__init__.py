"""Synthetic time series for pretraining: a seeded stream of batches from several families.

`Stream(seed=0).batch(i)` is a function of the seed, the settings and `i` alone, so a run resumes at any batch.
"""

from forecast.synthetic.stream import SeriesBatch, Stream

__all__ = ["SeriesBatch", "Stream"]
