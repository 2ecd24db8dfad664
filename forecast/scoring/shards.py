"""The shards of a cutoff, written into the staging folder: in this process, or by the workers of an engine.

In this process a thread writes one shard while the next is forecast, and the system reads the one after it, so memory
holds only a few.
"""

import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl

from forecast.data.files import write_parquet_atomic
from forecast.data.panel import Panel
from forecast.engines.engine import Engine, results
from forecast.errors import EngineError, OutputError, listing
from forecast.names import REASON, SERIES_ID
from forecast.scoring.manifests import FORECASTS, KINDS, REJECTS, Kind
from forecast.scoring.parts import FAILED, Part, Progress, ShardForecasts, complete_part, part_file, with_model
from forecast.scoring.shard_writer import CutoffRun, DigestTask, ShardWork, ShardWriter, WriteTask, WrittenShard
from forecast.scoring.sinks.base import Files

if TYPE_CHECKING:
    from forecast.scoring.state import StateUpdate

_END: Final = ".parquet"


@dataclass
class CutoffParts:
    """The parts of a cutoff, complete or to be written."""

    run: CutoffRun
    names: dict[int, str]
    """File name of each shard, by its number; it holds a digest of all inputs."""
    published: dict[Kind, Path]
    """Folders with parts of an earlier job that may be complete, by kind."""
    update: "StateUpdate | None"
    parts: dict[int, Part] = field(default_factory=dict)
    """Counts of the complete shards."""
    failures: dict[int, str] = field(default_factory=dict)
    """Why a shard could not be written, for those that failed on all attempts of an engine."""

    @property
    def folders(self) -> dict[Kind, list[Path]]:
        """Folders that may hold a part, by kind."""
        return {
            kind: [self.run.staging / kind, *([self.published[kind]] if kind in self.published else [])]
            for kind in KINDS
        }

    def files(self) -> Files:
        """Return the files of all parts, in the order of the shards."""
        names = [_failed(name) if number in self.failures else name for number, name in sorted(self.names.items())]
        return {
            kind: [path for name in names if (path := part_file(name, self.folders[kind])) is not None]
            for kind in KINDS
        }

    def remove_others(self) -> None:
        """Remove the parts of other inputs from the staging folder."""
        names = set(self.names.values())
        for kind in KINDS:
            for file in (self.run.staging / kind).glob("*"):
                if file.name not in names:
                    file.unlink()


class Shards:
    """Finds the parts that are complete, and has the others written by an engine, or in this process without one."""

    def __init__(self, writer: ShardWriter, work: ShardWork, engine: Engine | None) -> None:
        self._writer, self._work, self._engine = writer, work, engine

    def digests(self, cutoff: int, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """Return digests of the past, and of what is visible at a cutoff, of each shard."""
        if self._engine is None:
            return [self._writer.digests(number, cutoff) for number, _ in self._read_ahead(numbers)]
        tasks = [DigestTask(number, cutoff) for number in numbers]
        pairs = ((task.number, result) for task, result in results(self._engine, self._work, tasks))
        digests = {number: result for number, result in pairs if not isinstance(result, WrittenShard)}
        return [digests[number] for number in numbers]

    def find(self, parts: CutoffParts) -> list[int]:
        """Note the parts that are complete, and return the numbers of the other shards."""
        missing = []
        for number, name in parts.names.items():
            has_state = parts.update is None or parts.update.has(name, self._writer.panel(number))
            part = complete_part(name, parts.folders) if has_state else None
            if part is None:
                missing.append(number)
            else:
                parts.parts[number] = part
        return missing

    def write(
        self, parts: CutoffParts, missing: Sequence[int], seconds: dict[str, float], progress: Progress | None
    ) -> None:
        """Forecast and write the shards that `find` has named; `seconds` get the time by stage.

        `progress` is called with the number of series that are complete. A shard that fails on all attempts of an
        engine is written as rejects. Raises EngineError if all fail.
        """
        seconds.update({"forecast": 0.0, "write": 0.0})
        n_done = sum(self._writer.panel(number).n_series for number in parts.parts)

        def report(number: int) -> None:
            nonlocal n_done
            n_done += self._writer.panel(number).n_series
            if progress:
                progress(n_done)

        if progress and n_done:
            progress(n_done)
        if self._engine is None:
            self._write_here(parts, missing, seconds, report)
        else:
            self._write_by(self._engine, parts, missing, seconds, report)

    def _write_here(
        self, parts: CutoffParts, missing: Sequence[int], seconds: dict[str, float], report: Callable[[int], None]
    ) -> None:
        def write(shard_forecasts: ShardForecasts, name: str) -> Part:
            start = time.monotonic()
            part = self._writer.write(parts.run, shard_forecasts, name, parts.update)
            seconds["write"] += time.monotonic() - start
            return part

        pending: dict[int, Future[Part]] = {}
        with ThreadPoolExecutor(1) as thread:
            for number, shard in self._read_ahead(missing):
                start = time.monotonic()
                shard_forecasts = self._writer.forecast(shard, parts.run.cutoff, parts.update)
                seconds["forecast"] += time.monotonic() - start
                if pending:
                    pending[max(pending)].result()  # One write at a time bounds memory, and an error ends the job.
                pending[number] = thread.submit(write, shard_forecasts, parts.names[number])
                del shard_forecasts
                report(number)
            parts.parts |= {number: future.result() for number, future in pending.items()}

    def _read_ahead(self, numbers: Sequence[int]) -> Iterator[tuple[int, Panel]]:
        """Yield the shards; the system reads the pages of the next one ahead, and drops those of the last one."""
        for number, following in zip_longest(numbers, numbers[1:]):
            if following is not None:
                self._writer.panel(following).advise(mmap.MADV_WILLNEED)
            shard = self._writer.panel(number)
            yield number, shard
            shard.advise(mmap.MADV_DONTNEED)

    def _write_by(
        self,
        engine: Engine,
        parts: CutoffParts,
        missing: Sequence[int],
        seconds: dict[str, float],
        report: Callable[[int], None],
    ) -> None:
        (parts.run.staging / FORECASTS).mkdir(parents=True, exist_ok=True)
        tasks = [WriteTask(number, parts.run, parts.names[number]) for number in missing]
        for outcome in engine.run(self._work, tasks):
            number = outcome.task.number
            if isinstance(outcome.result, WrittenShard):
                parts.parts[number] = outcome.result.part
                for stage, value in outcome.result.seconds.items():
                    seconds[stage] += value
            else:
                parts.failures[number] = outcome.failure
            report(number)
        if parts.failures and len(parts.failures) == len(parts.names):
            reasons = listing(sorted(set(parts.failures.values())))
            raise EngineError(f"all {len(parts.failures):,} shards failed: {reasons}")
        for number in parts.failures:
            parts.parts[number] = self._reject(parts, number)

    def _reject(self, parts: CutoffParts, number: int) -> Part:
        """Write the series of a shard that failed as rejects. Without forecasts, the next job tries it again."""
        schema = self._writer.loaded.rejects.schema
        rows = pl.DataFrame({SERIES_ID: self._writer.panel(number).series_id.tolist()}, schema={SERIES_ID: pl.String})
        columns = [
            pl.lit(FAILED if name == REASON else None, dtype).alias(name)
            for name, dtype in schema.items()
            if name != SERIES_ID
        ]
        rejects = with_model(rows.with_columns(columns).select(schema.names()), self._work.names, parts.run.key.cutoff)
        write_parquet_atomic(rejects, parts.run.staging / REJECTS / _failed(parts.names[number]))
        return Part(0, rejects.height, {}, {FAILED: rejects.height}, {}, 0, {})


def check_complete(parts: CutoffParts, missing: Sequence[int]) -> None:
    """Raise OutputError if shards are missing, with the parts of other inputs in the staging folder."""
    if not missing:
        return
    existing = {file.name.split("-")[1] for kind in KINDS for file in (parts.run.staging / kind).glob(f"part-*{_END}")}
    others = [number for number in missing if f"{number:05d}" in existing]
    of_model = sorted(
        folder.name
        for folder in parts.run.staging.parent.glob(f"{parts.run.key.folder.split('.', 1)[0]}.*")
        if folder != parts.run.staging
    )
    hints = [
        f"{len(others):,} of them are there for other inputs: the panel, the settings or the version of gatecast differ"
        if others
        else "",
        f"there are parts of other models: {listing(of_model)}; name the version by its number, so that all shards "
        "have the same"
        if of_model
        else "",
    ]
    hint = "; ".join(filter(None, hints))
    raise OutputError(
        f"{len(missing):,} of {len(parts.names):,} parts of the cutoff are missing: {listing(missing)}"
        + (f" ({hint})" if hint else "")
        + "; run the shards again with the settings of this commit"
    )


def _failed(name: str) -> str:
    return f"{name.removesuffix(_END)}.failed{_END}"
