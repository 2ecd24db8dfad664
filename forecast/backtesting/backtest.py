"""Backtests with rolling origins: forecasts of models or refits from past cutoffs, scored beside baselines."""

import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl

from forecast.backtesting.baselines import processes
from forecast.backtesting.blocks import BlockScorer, ShareOutput
from forecast.backtesting.cutoffs import moments_of
from forecast.backtesting.parts import BacktestInputs, BlockParts, has_parts, remove_parts
from forecast.backtesting.plan import BacktestPlan, Block
from forecast.backtesting.result import FORECASTS, SCORES, BacktestResult, Contender, Progress, result_of
from forecast.backtesting.scoring import ScoredBlock
from forecast.config import BacktestSettings, JobShare
from forecast.data.files import parquet_blocks
from forecast.engines.engine import Engine
from forecast.errors import ConfigError, DataError
from forecast.names import SERIES_ID
from forecast.segments import segments_of


def backtest(
    contenders: dict[str, Contender],
    settings: BacktestSettings,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    engine: Engine | None = None,
    commit: bool = False,
) -> BacktestResult:
    """Return the scores of models (by name; all with the same horizon and frequency) beside baselines.

    Each model forecasts as in scoring from the first cutoff: with the weights of its final fit, if these have seen no
    later data. With `refit`, models refitted from the first contender at the cutoffs are scored instead (`pretrained`,
    `fine_tuned`). Windows without an observed target, or without history, are skipped. Forecasts and scores are written
    to `folder` (a temporary one when None) block by block.

    The blocks are scored by the workers of `engine`, without one in this process; the files are the same. With
    `commit`, all must have been written by `backtest_share`. Without refits, a job in `folder` resumes with the parts
    that an interrupted one has left there. No other job may write into `folder` meanwhile.

    Raises ConfigError if the models can't be compared or a setting does not fit them, DataError if the panel is too
    short or was seen in training, OutputError if files can't be written or parts are missing, EngineError if the
    workers fail.
    """
    plan = BacktestPlan.of(contenders, settings)
    first_model, panel, _ = next(iter(plan.contenders.values()))
    groups = segments_of(first_model, panel, plan.cutoffs[0], settings.segments)
    inputs = None
    if folder and settings.refit == "never" and (commit or engine or has_parts(folder)):
        inputs = BacktestInputs(plan, folder)
    temporary = None if folder else tempfile.TemporaryDirectory(prefix="gatecast-")
    folder = folder or Path(str(temporary and temporary.name))
    with processes(settings.n_jobs if plan.fitted and not engine else 1) as pool:
        parts = inputs.parts if inputs else BlockParts.of_job(folder)
        scorer = BlockScorer(plan, parts, inputs, engine, pool)
        with closing(scorer.score(commit=commit)) as blocks:
            scored, failures = _write_tables(folder, plan, blocks, progress)
    remove_parts(folder)
    return result_of(folder, temporary, groups, panel, scored, failures)


def backtest_share(
    contenders: dict[str, Contender],
    settings: BacktestSettings,
    share: JobShare,
    *,
    folder: Path,
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> ShareOutput:
    """Write the parts of a share of the blocks into a folder, unless they exist already; `backtest` joins them.

    Other shares may be written at the same time, on other machines. Raises as `backtest`; ConfigError with refits.
    """
    if settings.refit != "never":
        raise ConfigError(f"backtest.refit={settings.refit} trains models for all blocks, so there are no shards of it")
    plan = BacktestPlan.of(contenders, settings)
    inputs = BacktestInputs(plan, folder)
    with processes(settings.n_jobs if plan.fitted and not engine else 1) as pool:
        return BlockScorer(plan, inputs.parts, inputs, engine, pool).write_share(share, progress)


def _write_tables(
    folder: Path,
    plan: BacktestPlan,
    blocks: Iterator[tuple[Block, ScoredBlock | None]],
    progress: Progress | None,
) -> tuple[np.ndarray, pl.DataFrame]:
    """Write the scores and forecasts of all blocks; return which series have any, [S], and the failed baselines."""
    panel, n_done = plan.panel, 0
    scored = np.zeros(panel.n_series, dtype=bool)
    failures: list[pl.DataFrame] = []
    with (
        parquet_blocks(folder / f"{SCORES}.parquet") as write_scores,
        parquet_blocks(folder / f"{FORECASTS}.parquet") as write_forecasts,
    ):
        for block, result in blocks:
            if result is not None:
                names = set(result.scores[SERIES_ID].to_list())
                series = slice(block.begin, block.end)
                scored[series] |= [name in names for name in panel.series_id[series].tolist()]
                write_scores(result.scores)
                write_forecasts(result.forecasts)
                failures.append(result.failures)
            n_done += len(block.cutoffs) * (block.end - block.begin)
            if progress:
                share = n_done / (len(plan.cutoffs) * panel.n_series)
                progress(share, f"{moments_of(panel, block.cutoffs[-1:])}, {block.end:,} series")
        if not scored.any():
            raise DataError(
                "no series has both history and observations behind the cutoffs; check data.path and the cutoffs "
                "(backtest.n_windows, backtest.cutoffs)"
            )
    return scored, pl.concat(failures)
