"""Forecasts that scoring has written, read back by cutoff for monitoring."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from forecast.config import SinkConfig
from forecast.errors import DataError
from forecast.names import CUTOFF, SERIES_ID, STEP, quantile_column
from forecast.scoring.manifests import (
    current,
    cutoff_moment,
    in_utc,
    models_of,
    read_manifests,
    training_end,
    written_at,
)
from forecast.scoring.sinks.open import open_stored

__all__ = ["ScoredForecasts", "cutoff_moment", "in_utc", "training_end", "written_at"]


class ScoredForecasts:
    """Forecasts of a scores folder by cutoff, the earliest first; of one model where `model` names it.

    If several versions have forecast a cutoff, the current one counts, and one that was not trained on the cutoff's
    future takes precedence. Raises DataError if the folder has no manifests.
    """

    def __init__(self, scores: SinkConfig, group: str = "scores", model: str | None = None) -> None:
        contents = read_manifests(Path(scores.path))
        if not contents:
            raise DataError(
                f"{group}.path={scores.path}: no forecasts (it has no manifests); give the output.path of a "
                "forecast score that is done"
            )
        self.models = models_of(contents)
        """Names of the models with forecasts in the folder."""
        of_model = [content for content in contents if model in (None, content["model"])]
        self.contents = current(of_model, out_of_sample=True)
        self.path = scores.path
        self._sink = open_stored(scores, contents, group)

    def rows(self, content: Mapping[str, Any], series: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield the forecasts of a cutoff by series and step, of some series or all. Raises DataError."""
        n_rows = 0
        for part in self._sink.forecasts(content):
            selected = part if series is None else part.filter(pl.col(SERIES_ID).is_in(list(series)))
            frame = selected.sort(SERIES_ID, STEP).collect()
            n_rows += frame.height
            yield frame
        if series is None and n_rows != content["rows"]["written"]:
            raise DataError(
                f"{self.path}: the cutoff {content[CUTOFF]} has {n_rows:,} rows, its manifest says "
                f"{content['rows']['written']:,}; score it again (score.cutoff={content[CUTOFF]} score.force=true)"
            )

    def levels(self, contents: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
        """Return the quantile levels common to the given cutoffs. Raises DataError for forecasts of classes."""
        common: set[str] | None = None
        for content in contents:
            columns = content.get("columns")
            if columns is None and (part := next(iter(self._sink.forecasts(content)), None)) is not None:
                columns = part.collect_schema().names()
            if columns is not None:
                names = {name for name in columns if name[0] == "q" and name[1:2].isdigit()}
                common = names if common is None else common & names
        if not common or quantile_column(0.5) not in common:
            raise DataError(f"{self.path}: these are forecasts of classes; forecast monitor scores numbers")
        return tuple(sorted(float(name[1:]) / 100 for name in common))
