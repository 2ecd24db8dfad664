"""What a scoring job leaves behind: forecasts, rejects, and a manifest that is written last."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from forecast.artifact import Artifact
from forecast.data.io import write_parquet_atomic, write_text_atomic
from forecast.data.load import Loaded
from forecast.names import CUTOFF, REASON, SERIES_ID, SOURCE
from forecast.predict import Forecasts


@dataclass(frozen=True)
class Output:
    """The files of one cutoff."""

    forecasts: Path
    rejects: Path
    manifest: Path
    content: dict[str, Any]
    """Of the manifest."""


def write_output(
    folder: Path, artifact: Artifact, loaded: Loaded, made: Forecasts, *, versions: dict[str, str]
) -> Output:
    """Write one cutoff's forecasts and rejects below `folder`, each under a temporary name first; the manifest last.

    A cutoff without a manifest is not complete. The same inputs give the same bytes. Raises OutputError if the folder
    can't be written.
    """
    counts = loaded.counts
    rejects = pl.concat([loaded.rejects, made.rejects.cast(loaded.rejects.schema)]).sort(loaded.rejects.columns)
    forecast_series = made.frame[SERIES_ID].n_unique()
    rejected_series = counts.series_rejected + made.rejects.height
    assert forecast_series + rejected_series == counts.series_in, "a series was lost"
    assert made.frame.height == forecast_series * artifact.horizon, "a forecast step was lost"

    cutoff = made.frame[CUTOFF][0]
    name = f"{CUTOFF}={cutoff:%Y-%m-%dT%H-%M-%S}"
    forecast_path, reject_path = (folder / kind / name / f"{kind}.parquet" for kind in ("forecasts", "rejects"))
    write_parquet_atomic(made.frame, forecast_path)
    write_parquet_atomic(rejects, reject_path)
    content = {
        "cutoff": cutoff.isoformat(),
        "horizon": artifact.horizon,
        **versions,
        "series": {"in": counts.series_in, "forecast": forecast_series, "rejected": rejected_series},
        "rows": {
            "in": counts.rows_in,
            "kept": counts.rows_kept,
            "rejected": counts.rows_rejected,
            "future": counts.rows_future,
            "after_until": counts.rows_after_until,
            "written": made.frame.height,
        },
        "sources": _counted(made.frame.group_by(SERIES_ID).agg(pl.col(SOURCE).first()), SOURCE),
        "rejects": _counted(rejects, REASON),
        "files": {str(path.relative_to(folder)): _hash(path) for path in (forecast_path, reject_path)},
    }
    manifest = folder / "manifests" / f"{name}.json"
    write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
    return Output(forecast_path, reject_path, manifest, content)


def _counted(frame: pl.DataFrame, column: str) -> dict[str, int]:
    return dict(frame.group_by(column).len().sort(column).iter_rows())


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
