"""Forecasts that scoring has written."""

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
from forecast.scoring.sinks.open import open_sink

__all__ = ["Written", "cutoff_moment", "in_utc", "training_end", "written_at"]


class Written:
    """Forecasts that scoring has written, by cutoff, the earliest first.

    Of one model where `model` names it, whatever else is in the folder. Of several versions that have forecast a
    cutoff, the one that is current counts, but one that was not trained on what it forecasts comes first. Raises
    DataError if there is nothing.
    """

    def __init__(self, scores: SinkConfig, group: str = "scores", model: str | None = None) -> None:
        contents = read_manifests(Path(scores.path))
        if not contents:
            raise DataError(
                f"{group}.path={scores.path}: no forecasts (it has no manifests); give the output.path of a "
                "forecast score that is done"
            )
        self.models = models_of(contents)
        """That have forecasts in the folder."""
        own = [content for content in contents if model in (None, content["model"])]
        self.contents = current(own, out_of_sample=True)
        self.path = scores.path
        self._sink = open_sink(scores, group)

    def rows(self, content: Mapping[str, Any], series: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
        """Yield the forecasts of a cutoff by series and step, of some series or all."""
        found = 0
        for part in self._sink.forecasts(content):
            kept = part if series is None else part.filter(pl.col(SERIES_ID).is_in(list(series)))
            frame = kept.sort(SERIES_ID, STEP).collect()
            found += frame.height
            yield frame
        if series is None and found != content["rows"]["written"]:
            raise DataError(
                f"{self.path}: the cutoff {content[CUTOFF]} has {found:,} rows, its manifest says "
                f"{content['rows']['written']:,}; score it again (score.cutoff={content[CUTOFF]} score.force=true)"
            )

    def levels(self, contents: Sequence[Mapping[str, Any]]) -> tuple[float, ...]:
        """Return the quantile levels that all these cutoffs have. Raises DataError for classes."""
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
