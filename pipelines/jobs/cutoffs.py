"""The cutoffs of a scoring job."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from forecast.config import ScoreSettings
from forecast.errors import GatecastError
from pipelines.jobs import console

if TYPE_CHECKING:
    from forecast.data.ingest.loaded import Loaded
    from forecast.forecasting_model import ForecastingModel
    from forecast.scoring.job import ScoreJob
    from forecast.scoring.parts import Output

_LOG = logging.getLogger(__name__)


def requested_cutoffs(score: ScoreSettings) -> Sequence[datetime | None]:
    """Return the requested cutoffs, None for the end of the panel."""
    return score.cutoffs or (score.cutoff,)


def write_cutoffs(
    job: "ScoreJob", cutoffs: dict[str, int], label: str, *, commit: bool
) -> "tuple[list[Output], dict[str, GatecastError]]":
    """Write each cutoff, or commit its shards; return the outputs, and the errors by failed cutoff."""
    outputs: list[Output] = []
    failed: dict[str, GatecastError] = {}
    total = job.loaded.panel.n_series
    with console.stage(label) as stage:
        for number, (name, cutoff) in enumerate(cutoffs.items(), start=1):
            where = f"cutoff {number:,} of {len(cutoffs):,}, " if len(cutoffs) > 1 else ""

            def show(n_series: int, where: str = where) -> None:
                stage.update(f"{where}{n_series:,} of {total:,} series")

            try:
                outputs.append(job.write(cutoff, show, commit=commit))
            except GatecastError as error:
                failed[name] = error
        rows = sum(output.content["rows"]["written"] for output in outputs if not output.was_complete)
        stage.note(cutoffs=len(cutoffs), series=total, rows_written=rows)
    return outputs, failed


def grid_cutoffs(score: ScoreSettings, loaded: "Loaded") -> dict[str, int]:
    """Return the grid indices of the cutoffs by timestamp, earliest first, as the state needs."""
    import numpy as np

    grid = loaded.panel.grid
    index = sorted(
        {loaded.panel.last_index if moment is None else grid.floor(moment) for moment in requested_cutoffs(score)}
    )
    return dict(zip((moment.isoformat() for moment in grid.timestamps(np.array(index))), index, strict=True))


def warn_in_sample(version: object, model: "ForecastingModel", cutoffs: dict[str, int]) -> None:
    """Warn of cutoffs before the end of the training data of a model; the text of `version` names it."""
    from forecast.errors import listing

    early = [name for name, cutoff in cutoffs.items() if cutoff < model.trained_until]
    if early:
        _LOG.warning(
            "%s has seen data until %s: forecasts from %s of %s cutoffs are in-sample and better than those of new "
            "data: %s",
            version,
            model.trained_until_timestamp.isoformat(),
            f"{len(early):,}",
            f"{len(cutoffs):,}",
            listing(early),
        )


def check_failures(failed: Mapping[str, GatecastError], n_done: int) -> None:
    """Raise an error that lists all failures, of the type of the first, if there is any."""
    if not failed:
        return
    if not n_done and len(failed) == 1:
        raise next(iter(failed.values()))
    reasons = [f"  {cutoff}: {error}" for cutoff, error in failed.items()]
    raise type(next(iter(failed.values())))(
        f"{len(failed):,} of {n_done + len(failed):,} cutoffs failed, the others are done; the same command tries "
        "these again:\n" + "\n".join(reasons)
    )
