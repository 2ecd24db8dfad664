"""Data, profile and figures logged to a run."""

import logging
import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final, Literal

from pipelines.jobs.job import note

if TYPE_CHECKING:
    from forecast.data.ingest.loaded import Loaded
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version

Context = Literal["training", "validation", "evaluation", "scoring"]
"""The purpose of the data of a run."""
_ALWAYS_LOGGED: Final = ("rows_in", "rows_kept", "rows_rejected", "series_in", "series_kept", "series_rejected")

_DATASET: Final = "panel"
"""Name of a dataset that is no file."""
_LOG = logging.getLogger(__name__)


def log_data(run: "Run", loaded: "Loaded", context: Context, version: "Version | None" = None) -> str:
    """Log the data of a run, its rejects, and the version that the run uses; return the digest of the panel.

    Counts of zero are not logged, except those of _ALWAYS_LOGGED.
    """
    from forecast.data.profiling.quality import quality

    note(mlflow=run.link)
    data, counts = loaded.data, loaded.counts
    source = str(data.path if data.uri is None else data.uri.get_secret_value())
    run.dataset(
        _DATASET if data.uri else _dataset_name(source),
        digest=loaded.digest,
        source=source,
        rows=counts.rows_in,
        series=counts.series_kept,
        context=context,
        version=version,
    )
    values = {f"data/{name}": value for name, value in vars(counts).items() if value or name in _ALWAYS_LOGGED}
    run.metrics(values)
    run.table(loaded.rejects, "rejects.parquet")
    run.table(quality(loaded.rejects, counts), "quality.parquet")
    return loaded.digest


def _dataset_name(path: str) -> str:
    """Return a name for the data at a path: its last part with a letter or digit, without its suffix.

    >>> _dataset_name("s3://bucket/loads.parquet"), _dataset_name("data/loads/*.csv")
    ('loads', 'loads')
    """
    stems = (PurePosixPath(part).stem for part in reversed(PurePosixPath(path).parts))
    return next((stem for stem in stems if re.search(r"\w", stem)), _DATASET)


def log_profile(run: "Run", loaded: "Loaded") -> None:
    """Log the profile of a panel as a table and a page."""
    from forecast.data.ingest.missing_known import missing_known
    from forecast.data.profiling.profile import profile
    from forecast.reports.profile_page import profile_page

    assert loaded.data.season_length is not None
    profiled = profile(loaded.panel, loaded.data.season_length, loaded.classes)
    missing = missing_known(loaded.panel, loaded.data, horizon=0) if loaded.data.known_covariates else None
    run.table(profiled, "profile.parquet")
    run.text(profile_page(loaded, profiled, missing), "profile.html")


def log_missing(run: "Run", loaded: "Loaded", *, horizon: int, cutoffs: "list[int]") -> None:
    """Log the missing cells of known covariates for forecasts from some cutoffs, with a warning."""
    import numpy as np
    import polars as pl

    from forecast.data.ingest.missing_known import missing_known
    from forecast.errors import listing
    from forecast.names import CUTOFF, SERIES_ID

    if not loaded.data.known_covariates:
        return
    missing = pl.concat(
        missing_known(loaded.panel, loaded.data, horizon=horizon, cutoff=cutoff).with_columns(
            pl.lit(loaded.panel.grid.timestamps(np.array([cutoff]))[0]).alias(CUTOFF)
        )
        for cutoff in cutoffs
    )
    run.table(missing, "missing_known.parquet")
    ahead = missing.filter(pl.col("missing_horizon") > 0)
    for (name,), part in ahead.group_by("covariate", maintain_order=True):
        series = part[SERIES_ID].unique(maintain_order=True)
        cells = f"{part['missing_horizon'].sum():,} of {part.height * horizon:,} cells"
        _LOG.warning(f"{name}: {cells} missing over the horizon, in {len(series):,} series: {listing(series)}")


def pick(names: "list[str]", count: int = 6) -> list[str]:
    """Return `count` names evenly spread over a list."""
    step = max(1, len(names) // count)
    return names[::step][:count]
