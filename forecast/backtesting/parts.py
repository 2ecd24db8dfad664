"""Parts of a backtest: the files of its blocks, until all are joined.

    .staging/backtest-MODELS/forecasts/part-00007-1f2e....parquet    a complete part; scores and failures are beside it
    .staging/backtest-MODELS/models.json                             digests of the models, by name

MODELS is a digest of all models, and the name of a part holds one of all inputs of its content. So a killed job resumes
with the parts that are complete, and a commit finds those that shares have written on other machines.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from forecast.backtesting.plan import BacktestPlan, Block
from forecast.backtesting.result import FORECASTS, SCORES
from forecast.backtesting.scoring import ScoredBlock
from forecast.data.files import write_parquet_atomic, write_text_atomic
from forecast.data.sources.frames import UNREADABLE
from forecast.environment import gatecast_version
from forecast.errors import OutputError, listing
from forecast.names import CUTOFF, MODEL, REASON, SERIES_ID
from forecast.scoring.parts import digest_of

_STAGING: Final = ".staging"
_START: Final = "backtest"
_FAILURES: Final = "failures"
_MODELS: Final = "models.json"


@dataclass(frozen=True)
class BlockParts:
    """The parts of a backtest in a folder."""

    folder: Path
    models: str = "{}"
    """Digests of the models by name, as JSON."""

    @classmethod
    def of_job(cls, folder: Path) -> "BlockParts":
        """Return parts that no other job may read, in a folder of the job's; those of an earlier job are removed."""
        parts = cls(folder / _STAGING / _START)
        shutil.rmtree(parts.folder, ignore_errors=True)
        return parts

    def prepare(self) -> None:
        """Make the folder."""
        write_text_atomic(self.models + "\n", self.folder / _MODELS)

    def write(self, name: str, block: ScoredBlock | None) -> None:
        """Write a part; the forecasts come last, so their file marks a complete one."""
        if block is None:
            write_parquet_atomic(pl.DataFrame(schema={SERIES_ID: pl.String}), self.folder / FORECASTS / name)
            return
        if block.failures.height:
            write_parquet_atomic(block.failures, self.folder / _FAILURES / name)
        write_parquet_atomic(block.scores, self.folder / SCORES / name)
        counts = {_FAILURES: str(block.failures.height)}
        write_parquet_atomic(block.forecasts, self.folder / FORECASTS / name, counts)

    def has(self, name: str) -> bool:
        """Return whether a part is complete."""
        kinds = [FORECASTS]
        try:
            footer = pl.read_parquet_metadata(self.folder / FORECASTS / name)
            if _FAILURES in footer:
                kinds += [SCORES, *([_FAILURES] if int(footer[_FAILURES]) else [])]
            for kind in kinds[1:]:
                pl.read_parquet_metadata(self.folder / kind / name)
        except UNREADABLE:
            return False
        return True

    def read(self, name: str) -> ScoredBlock | None:
        """Return the content of a complete part."""
        forecasts = self._read(FORECASTS, name)
        if not forecasts.height:
            return None
        scores = self._read(SCORES, name)
        if (self.folder / _FAILURES / name).exists():
            failures = self._read(_FAILURES, name)
        else:
            failures = scores.clear().select(SERIES_ID, CUTOFF, MODEL, pl.lit(None, pl.String).alias(REASON))
        return ScoredBlock(scores, forecasts, failures)

    def _read(self, kind: str, name: str) -> pl.DataFrame:
        try:
            return pl.read_parquet(self.folder / kind / name, glob=False, hive_partitioning=False)
        except UNREADABLE as error:
            raise OutputError(f"can't read {self.folder / kind / name}: {error}; run the job again") from error


class BacktestInputs:
    """The inputs of a backtest without refits, whose parts may be joined by another process than has written them."""

    def __init__(self, plan: BacktestPlan, folder: Path) -> None:
        self._plan = plan
        self._models = {name: model.digest or model.artifact.digest() for name, model in plan.contenders.items()}
        excluded = {"n_jobs", "segments", *(["horizon"] if plan.settings.horizon is None else [])}
        self._shared = {
            "models": self._models,
            "settings": plan.settings.model_dump(mode="json", exclude=excluded),
            "cutoffs": plan.cutoffs,
            "code": f"gatecast {gatecast_version()}",
        }
        staging = folder / _STAGING / f"{_START}-{digest_of(self._models)[:16]}"
        self.parts = BlockParts(staging, json.dumps(self._models, indent=1))

    def name(self, block: Block) -> str:
        """Return the name of the part of a block."""
        visible: dict[int, str] = {}
        for _, panel, _ in self._plan.contenders.values():
            if id(panel) not in visible:
                shard = panel.rows(block.begin, block.end).in_memory()
                last = block.cutoffs[-1] + self._plan.horizon
                visible[id(panel)] = shard.visible_digest(last, 0, weighted=True)
        digest = digest_of(self._shared, block, list(visible.values()))
        return f"part-{block.number:05d}-{digest[:16]}.parquet"

    def check_complete(self, names: Sequence[str]) -> None:
        """Raise OutputError if parts are missing, with those of other inputs and of other models."""
        missing = {number: name for number, name in enumerate(names) if not self.parts.has(name)}
        if not missing:
            return
        existing = {file.name.split("-")[1] for file in (self.parts.folder / FORECASTS).glob("part-*.parquet")}
        n_others = sum(f"{number:05d}" in existing for number in missing)
        hints = [
            f"{n_others:,} of them with other inputs: another table, settings or gatecast version" if n_others else "",
            *(
                f"other models: {difference}"
                for file in sorted(self.parts.folder.parent.glob(f"{_START}-*/{_MODELS}"))
                if (difference := self._difference(json.loads(file.read_text(encoding="utf-8"))))
            ),
        ]
        hint = "; ".join(filter(None, hints))
        raise OutputError(
            f"{len(missing):,} of {len(names):,} parts of the backtest are missing: {listing(missing)}"
            + (f" (there are parts of {hint})" if hint else "")
            + "; run the shards again with the settings of this commit, and name the version by its number"
        )

    def _difference(self, models: dict[str, str]) -> str:
        """Return the models that differ from those of other parts."""
        absent = "absent"
        return listing(
            f"{name} is {models.get(name, absent)[:16]} there and {self._models.get(name, absent)[:16]} here"
            for name in dict.fromkeys([*self._models, *models])
            if models.get(name) != self._models.get(name)
        )


def has_parts(folder: Path) -> bool:
    """Return whether an interrupted job or shares have left parts."""
    return any((folder / _STAGING).glob(f"{_START}-*"))


def remove_parts(folder: Path) -> None:
    """Remove all parts, once the tables are complete."""
    for parts in (folder / _STAGING).glob(f"{_START}*"):
        shutil.rmtree(parts)
    if (folder / _STAGING).is_dir() and not any((folder / _STAGING).iterdir()):
        (folder / _STAGING).rmdir()
