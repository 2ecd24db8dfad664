"""Blocks of a backtest: scored in this process, by the workers of an engine, or by shares of the job."""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import chain

from forecast.backtesting.parts import BacktestInputs, BlockParts
from forecast.backtesting.plan import BacktestPlan, Block
from forecast.backtesting.refit import refit_rounds
from forecast.backtesting.result import Progress
from forecast.backtesting.scoring import ScoredBlock
from forecast.backtesting.work import BlockTask, BlockWork
from forecast.config import JobShare
from forecast.engines.engine import Engine, results


@dataclass(frozen=True)
class ShareOutput:
    """The parts that a share of a backtest has written."""

    n_blocks: int
    """Number of blocks in the share."""
    n_written: int
    """Number of them that did not exist before."""


@dataclass(frozen=True)
class BlockScorer:
    """Scores the blocks of a plan by an engine; without one in this process, where `pool` fits the baselines."""

    plan: BacktestPlan
    parts: BlockParts
    inputs: BacktestInputs | None
    """Inputs that name the parts, so that existing ones are used; None if all are those of this job."""
    engine: Engine | None
    pool: Executor | None

    def score(self, *, commit: bool = False) -> Generator[tuple[Block, ScoredBlock | None]]:
        """Yield the scored blocks in order. With `commit`, raises OutputError before the first if parts are missing.

        Parts that are complete are read. The others are written by the engine; without one, nothing is written.
        """
        for work, blocks in self._rounds():
            if self.engine is None and self.inputs is None:
                yield from ((block, work.score(block, self.pool)) for block in blocks)
                continue
            tasks = self._tasks(blocks)
            if self.inputs is not None and commit:
                self.inputs.check_complete([task.name for task in tasks])
            missing = self._missing(tasks)
            if self.engine is None:
                for block, name in tasks:
                    yield block, work.score(block, self.pool) if block in missing else self.parts.read(name)
            else:
                yield from self._in_order(work, tasks, missing)

    def write_share(self, share: JobShare, progress: Progress | None) -> ShareOutput:
        """Write the parts of a share of the blocks, unless they exist already."""
        (work, blocks), *_ = self._rounds()
        tasks = self._tasks([blocks[number] for number in share.of(len(blocks))])
        missing = self._missing(tasks)
        for n_done, block in enumerate(self._write(work, list(missing.values())), start=1 + len(tasks) - len(missing)):
            if progress:
                progress(n_done / len(tasks), f"{block.end - block.begin:,} series")
        return ShareOutput(len(tasks), len(missing))

    def _rounds(self) -> Iterator[tuple[BlockWork, list[Block]]]:
        """Yield the work of each round of refits, and its blocks."""
        first = 0
        for groups, models in refit_rounds(self.plan.contenders, self.plan.settings, self.plan.cutoffs):
            blocks = list(self.plan.blocks(groups, first))
            first += len(blocks)
            yield BlockWork(models, self.plan.settings, self.plan.fitted, self.parts), blocks

    def _tasks(self, blocks: Sequence[Block]) -> list[BlockTask]:
        if self.inputs is not None:
            return [BlockTask(block, self.inputs.name(block)) for block in blocks]
        return [BlockTask(block, f"part-{block.number:05d}.parquet") for block in blocks]

    def _missing(self, tasks: Sequence[BlockTask]) -> dict[Block, BlockTask]:
        """Return the tasks without a complete part."""
        return {task.block: task for task in tasks if self.inputs is None or not self.parts.has(task.name)}

    def _write(self, work: BlockWork, tasks: Sequence[BlockTask]) -> Iterator[Block]:
        """Write parts, and yield each block as soon as its part is complete."""
        if tasks:
            self.parts.prepare()
        if self.engine is not None:
            yield from (task.block for task, _ in results(self.engine, work, tasks))
            return
        for task in tasks:
            self.parts.write(task.name, work.score(task.block, self.pool))
            yield task.block

    def _in_order(
        self, work: BlockWork, tasks: Sequence[BlockTask], missing: dict[Block, BlockTask]
    ) -> Iterator[tuple[Block, ScoredBlock | None]]:
        """Yield the parts in order, each as soon as it and those before it are complete."""
        following = iter(tasks)
        task = next(following, None)
        for block in chain([None], self._write(work, list(missing.values()))):
            if block:
                del missing[block]
            while task and task.block not in missing:
                yield task.block, self.parts.read(task.name)
                task = next(following, None)
