"""The work on the blocks of a backtest; workers import nothing that trains."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import NamedTuple

from forecast.backtesting.parts import BlockParts
from forecast.backtesting.plan import Block
from forecast.backtesting.result import Contender
from forecast.backtesting.scoring import BlockPlan, ScoredBlock, score_block
from forecast.config import BacktestSettings
from forecast.errors import OutputError


class BlockTask(NamedTuple):
    """The part of a block is wanted."""

    block: Block
    name: str
    """Name of the part."""


@dataclass(frozen=True)
class BlockWork:
    """What the workers of an engine need to score blocks."""

    models: dict[str, Contender]
    settings: BacktestSettings
    fitted: list[str]
    """Baselines that are fitted to each series."""
    parts: BlockParts

    def score(self, block: Block, pool: Executor | None = None) -> ScoredBlock | None:
        """Return a block, scored; None without a window to score. `pool` fits the baselines."""
        plan = BlockPlan(self.settings, self.fitted, pool)
        return score_block(plan, self.models, list(block.cutoffs), block.begin, block.end)

    def open(self) -> Callable[[BlockTask], None]:
        """Return the function of a task."""

        def run(task: BlockTask) -> None:
            if not self.parts.folder.is_dir():
                raise OutputError(
                    f"a worker does not see {self.parts.folder}; set output.path to a folder on a disk that all "
                    "machines share, with the same path on each"
                )
            self.parts.write(task.name, self.score(task.block))

        return run
