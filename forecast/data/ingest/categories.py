"""Text covariates as codes: position among the categories, counted from 1; 0 for any other value."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from forecast.config import DataConfig
from forecast.data.panel import FloatArray, IntArray, Panel

Categories = Mapping[str, tuple[str, ...]]
# Minimum number of steps of a series that training samples from.
_LEAST_STEPS = 2


def with_trained_categories(
    panel: Panel, categories: Categories, data: DataConfig, limits: IntArray
) -> tuple[Panel, dict[str, tuple[str, ...]]]:
    """Return the panel and the categories, restricted to the covariate values that training sees.

    Training sees the first `limits` steps of each series, [S], and the static covariates of these series; a series of
    fewer than two steps is not trained on. Any other value has no embedding to learn and gets code 0, as in forecasts.
    """
    limits = np.where(limits >= _LEAST_STEPS, limits, 0)
    counts = {name: np.zeros(len(categories[name]) + 1, np.int64) for name in _covariates(categories, data)}
    if not counts:
        return panel, dict(categories)
    for column, name in enumerate(name for name in data.static_covariates if name in categories):
        _count(counts[name], panel.static_categories[limits > 0, column])
    begin = 0
    if any(name in categories for name in (*data.past_covariates, *data.known_covariates)):
        for shard in panel.shards():
            limit = limits[begin : begin + shard.n_series]
            begin += shard.n_series
            for names, values, lengths in (
                (data.past_covariates, shard.past, shard.lengths),
                (data.known_covariates, shard.known, shard.lengths + panel.horizon),
            ):
                rows = [(name, row) for name, row in zip(names, values, strict=False) if name in categories]
                if not rows:
                    continue
                step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
                inside = step < np.repeat(limit, lengths)
                for name, row in rows:
                    _count(counts[name], row[inside])
    trained_values = {
        name: tuple(value for value, count in zip(categories[name], counts[name][1:], strict=True) if count)
        for name in counts
    }
    trained = {**categories, **trained_values}
    return with_codes(panel, categories, trained, data), trained


def with_codes(panel: Panel, before: Categories, after: Categories, data: DataConfig) -> Panel:
    """Return the panel with covariate codes of `before` replaced by those of `after`; 0 for values not in `after`."""
    changed = [name for name in _covariates(before, data) if before[name] != after[name]]
    if not changed:
        return panel

    def lookup(name: str) -> npt.NDArray[np.int64]:
        codes = {value: position + 1 for position, value in enumerate(after[name])}
        return np.array([0, *(codes.get(value, 0) for value in before[name])])

    def rows(values: FloatArray, names: Sequence[str]) -> FloatArray:
        if not any(name in changed for name in names):
            return values
        result = np.array(values)
        for row, name in zip(result, names, strict=False):
            if name in changed:
                valid = ~np.isnan(row)
                row[valid] = lookup(name)[row[valid].astype(np.int64)]
        return result

    static = np.array(panel.static_categories)
    for column, name in enumerate(name for name in data.static_covariates if name in before):
        static[:, column] = lookup(name)[static[:, column]]
    return replace(
        panel,
        past=rows(panel.past, data.past_covariates),
        known=rows(panel.known, data.known_covariates),
        static_categories=static,
    )


def _covariates(categories: Categories, data: DataConfig) -> list[str]:
    covariates = (*data.static_covariates, *data.past_covariates, *data.known_covariates)
    return [name for name in covariates if name in categories]


def _count(counts: IntArray, codes: npt.NDArray[np.float32] | IntArray) -> None:
    present = codes[np.isfinite(codes)].astype(np.int64)
    counts += np.bincount(present, minlength=len(counts))
