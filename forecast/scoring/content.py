"""The content of a manifest: counts over all parts of a cutoff, and the check of the share of the model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from forecast.config import DataConfig, ScoreSettings
from forecast.data.ages import ENDED
from forecast.data.ingest.loaded import Loaded
from forecast.data.sources.side_tables import side_tables
from forecast.errors import DataError, listing
from forecast.names import (
    REASON,
    SOURCE_CLOSED,
    SOURCE_FINE_TUNED,
    SOURCE_LAST_VALUE,
    SOURCE_PRETRAINED,
    SOURCE_SEASONAL_NAIVE,
)
from forecast.redaction import redacted
from forecast.scoring.parts import Part, count_by

PAST: Final = "past"
"""Field of a manifest: the number of series per shard, and digests of what each has at or before the cutoff."""
TABLES: Final = "tables"
"""Field of a manifest: the paths of the tables by their settings."""
_DIGITS: Final = 16


def past_of(size: int, digests: Sequence[str]) -> dict[str, Any]:
    """Return the field PAST: the past is all that forecasts see, except known covariates after the cutoff."""
    return {"shard_size": size, "digests": [digest[:_DIGITS] for digest in digests]}


def tables_of(data: DataConfig) -> dict[str, str]:
    """Return the field TABLES, without databases and addresses with a secret."""
    path = None if data.path is None or redacted(str(data.path)) != str(data.path) else str(data.path)
    if path is not None and "://" not in path:
        path = str(Path(path).absolute())
    return ({} if path is None else {"data.path": path}) | side_tables(data)


def content_of(
    parts: Sequence[Part], loaded: Loaded, horizon: int, versions: Mapping[str, Any], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the manifest without the inventory of the sink, after checking that no series and no row is lost.

    `versions` identify the inputs of the forecasts; `facts` are recorded, too, but do not change them.
    """
    counts = loaded.counts
    series, refused = sum(part.series for part in parts), sum(part.rejected for part in parts)
    rejected = refused + counts.series_rejected
    assert series + rejected == counts.series_in, "a series was lost"
    rejects = Counter(count_by(loaded.rejects, REASON))
    sources: Counter[str] = Counter()
    bounded: Counter[str] = Counter()
    state: Counter[str] = Counter()
    for part in parts:
        rejects.update(part.rejects)
        sources.update(part.sources)
        bounded.update(part.bounded)
        state.update(part.state)
    assert sources.total() == series, "a source was lost"
    return {
        **versions,
        **facts,
        "written_at": datetime.now(UTC).isoformat(),
        "series": {"in": counts.series_in, "forecast": series, "rejected": rejected},
        "rows": {
            "in": counts.rows_in,
            "kept": counts.rows_kept,
            "rejected": counts.rows_rejected,
            "future": counts.rows_future,
            "after_until": counts.rows_after_until,
            **({"masked": counts.rows_masked} if counts.rows_masked else {}),
            "written": series * horizon,
            "refused": refused,
        },
        "sources": dict(sorted(sources.items())),
        "rejects": dict(sorted(rejects.items())),
        "bounded": dict(sorted(bounded.items())),
        "carried_forward": sum(part.carried for part in parts),
        "state": dict(sorted(state.items())),
    }


def check_model_share(content: Mapping[str, Any], score: ScoreSettings, context_length: int) -> None:
    """Raise DataError if the model itself forecast no series, or less than score.min_model_share."""
    sources, series = content["sources"], content["series"]
    n_model = sum(sources.get(name, 0) for name in (SOURCE_FINE_TUNED, SOURCE_PRETRAINED, SOURCE_CLOSED))
    if n_model and n_model >= score.min_model_share * series["forecast"]:
        return
    fallbacks = [f"{sources[name]:,} {name}" for name in (SOURCE_SEASONAL_NAIVE, SOURCE_LAST_VALUE) if name in sources]
    ended = content["rejects"].get(ENDED, 0)
    of_which = f", {ended:,} of them {ENDED} (score.max_age={score.max_age})" if ended else ""
    rejected = [f"{series['rejected']:,} rejected{of_which}"] if series["rejected"] else []
    raise DataError(
        f"the model forecast {n_model:,} of {series['forecast']:,} series at {content['cutoff']} "
        f"(score.min_model_share={score.min_model_share:g}; {listing([*fallbacks, *rejected])}), so nothing "
        "is published. It gives no finite forecast of a series without a value in its last "
        f"{context_length:,} steps; check the cutoff and the newest rows of the table, "
        "or take another version"
    )
