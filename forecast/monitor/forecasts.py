"""Forecasts that scoring has written."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from forecast.config import SinkConfig
from forecast.data.sinks import open_sink
from forecast.errors import DataError
from forecast.names import CUTOFF, SERIES_ID, STEP, quantile_column


class Written:
    """Forecasts that scoring has written, by cutoff, the earliest first."""

    def __init__(self, scores: SinkConfig, group: str = "scores") -> None:
        files = sorted((Path(scores.path) / "manifests").glob(f"{CUTOFF}=*.json"))
        self.contents = sorted(map(_read, files), key=lambda content: in_utc(cutoff_moment(content)))
        if not files:
            raise DataError(
                f"{group}.path={scores.path}: no forecasts (it has no manifests); give the output.path of a "
                "forecast score that is done"
            )
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
            part = next(iter(self._sink.forecasts(content)), None)
            if part is not None:
                names = {name for name in part.collect_schema() if name[0] == "q" and name[1:2].isdigit()}
                common = names if common is None else common & names
        if not common or quantile_column(0.5) not in common:
            raise DataError(f"{self.path}: these are forecasts of classes; forecast monitor scores numbers")
        return tuple(sorted(float(name[1:]) / 100 for name in common))


def _read(manifest: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        cutoff_moment(content)
        training_end(content)
        content.setdefault("written_at", datetime.fromtimestamp(manifest.stat().st_mtime, UTC).isoformat())
        written_at(content)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{manifest} can't be read ({error}); delete it, and score its cutoff again") from None
    return content


def cutoff_moment(content: Mapping[str, Any]) -> datetime:
    """Return the cutoff of a manifest. Raises KeyError, ValueError."""
    return datetime.fromisoformat(content[CUTOFF])


def training_end(content: Mapping[str, Any]) -> datetime | None:
    """Return the last moment that the version of a manifest was trained on; None where it does not say. ValueError."""
    until = content.get("trained_until")
    return None if until is None else datetime.fromisoformat(until)


def written_at(content: Mapping[str, Any]) -> datetime:
    """Return when a cutoff was scored; its file's time where the manifest does not say. Raises ValueError."""
    return in_utc(datetime.fromisoformat(content["written_at"]))


def in_utc(moment: datetime) -> datetime:
    """Return a moment with a time zone, UTC where it has none, so that moments can be sorted."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
