"""Forecasts that scoring has written, read back by cutoff for monitoring."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from forecast.config import SinkConfig
from forecast.errors import DataError
from forecast.names import CUTOFF, SERIES_ID, STEP, quantile_column
from forecast.scoring.manifests import (
    ForecastKey,
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


class Block(NamedTuple):
    """The series with ids from `first` up to `end`, excluded; None is no bound."""

    first: str | None = None
    end: str | None = None

    @property
    def is_all(self) -> bool:
        """Whether the block has every series."""
        return self == Block()

    def meets(self, lowest: str, highest: str) -> bool:
        """Return whether some id from `lowest` to `highest` may be in the block."""
        return (self.end is None or lowest < self.end) and (self.first is None or highest >= self.first)

    def contains(self) -> pl.Expr:
        """Return whether the id of a row is in the block."""
        name, inside = pl.col(SERIES_ID), pl.lit(value=True)
        if self.first is not None:
            inside = name >= self.first
        return inside if self.end is None else inside & (name < self.end)


class _StoredPart(NamedTuple):
    """Rows of a cutoff that are stored together, with the lowest and highest id among them."""

    rows: pl.LazyFrame
    lowest: str
    highest: str


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
        self.reads_blocks = scores.sink != "sql"
        """Whether a block of series is read without the others; a cutoff in a database is read whole."""
        self._parts: dict[ForecastKey, list[_StoredPart]] = {}

    def rows(self, content: Mapping[str, Any], series: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield the forecasts of some series of a cutoff, by series and step."""
        for part in self._sink.forecasts(content):
            yield _ordered(part.filter(pl.col(SERIES_ID).is_in(list(series))))

    def block(self, content: Mapping[str, Any], block: Block) -> Iterator[pl.DataFrame]:
        """Yield the forecasts of a block of series of a cutoff, by series and step.

        Raises DataError if the cutoff has more or fewer rows than its manifest says.
        """
        if not block.is_all:
            for part in self._parts_of(content):
                if block.meets(part.lowest, part.highest):
                    yield _ordered(part.rows.filter(block.contains()))
            return
        n_rows = 0
        for rows in self._sink.forecasts(content):
            frame = _ordered(rows)
            n_rows += frame.height
            yield frame
        self._check_rows(content, n_rows)

    def _parts_of(self, content: Mapping[str, Any]) -> list[_StoredPart]:
        """Return the parts of a cutoff, whose ids are read once."""
        key = ForecastKey.of(content)
        if key not in self._parts:
            name = pl.col(SERIES_ID)
            extents = [
                (rows, *rows.select(name.min().alias("low"), name.max().alias("high"), pl.len()).collect().row(0))
                for rows in self._sink.forecasts(content)
            ]
            self._check_rows(content, sum(n_rows for *_, n_rows in extents))
            self._parts[key] = [_StoredPart(rows, low, high) for rows, low, high, n_rows in extents if n_rows]
        return self._parts[key]

    def _check_rows(self, content: Mapping[str, Any], n_rows: int) -> None:
        if n_rows != content["rows"]["written"]:
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


def _ordered(rows: pl.LazyFrame) -> pl.DataFrame:
    return rows.sort(SERIES_ID, STEP).collect()
