"""The stream of batches of synthetic series."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from forecast.errors import ConfigError
from forecast.synthetic.artefacts import spoil
from forecast.synthetic.components import Array, Integers, Layout, Mask, chance, log_uniform
from forecast.synthetic.families import FAMILIES
from forecast.synthetic.frequencies import LOW, SEASON, SECOND, SHARE, YEARLY, history_lengths
from forecast.synthetic.mixing import mix


class SeriesBatch(NamedTuple):
    """Synthetic series, aligned at their end: the last `horizon` steps of the stream are the future of each."""

    values: npt.NDArray[np.float32]
    """[series, time] 0 where not observed."""
    observed: npt.NDArray[np.bool_]
    """[series, time] False before the first step of a series and at missing values; the first step is observed."""
    season_length: npt.NDArray[np.int64]
    """[series] Steps of the season; 1 without any."""
    second_season: npt.NDArray[np.int64]
    """[series] Steps of a longer second season; 0 without any."""
    length: npt.NDArray[np.int64]
    """[series] Steps of the history, without the horizon."""
    family: npt.NDArray[np.int64]
    """[series] Index into `Stream.families`; of a mixture, that of its main part."""


@dataclass(frozen=True)
class Stream:
    """Batches of synthetic series, each a function of the settings and its index alone.

    `stream.batch(7)` is the same whatever was drawn before, so a training run resumes at any step.

    Raises ConfigError for sizes below 1 and for shares that name no family or are not positive.
    """

    seed: int = 0
    n_series: int = 512
    """Series of a batch. Larger ones cost less per series."""
    context: int = 512
    """Steps of the longest history."""
    horizon: int = 64
    """Steps after each history."""
    shares: Mapping[str, float] = field(
        default_factory=lambda: {name: family.share for name, family in FAMILIES.items()}
    )
    """Share of each family; they need not sum to 1."""
    mixing: float = 0.2
    """Share of series that are mixtures of two or three. Counts are never mixed."""
    artefacts: bool = True
    """Whether values are missing, rounded, limited, repeated or outlying."""
    curriculum: int = 2_000
    """Batch from which on outliers have their full frequency; the first batch has none."""

    def __post_init__(self) -> None:
        if low := [name for name in ("n_series", "context", "horizon") if getattr(self, name) < 1]:
            raise ConfigError(f"{', '.join(low)}: must be at least 1")
        if unknown := [name for name in self.shares if name not in FAMILIES]:
            raise ConfigError(f"no family of synthetic series {', '.join(unknown)}; there are: {', '.join(FAMILIES)}")
        if not self.shares or min(self.shares.values()) < 0 or sum(self.shares.values()) <= 0:
            raise ConfigError(f"shares of synthetic series: none may be negative, one must be positive: {self.shares}")

    @property
    def families(self) -> tuple[str, ...]:
        """The names of the families, in the order of `SeriesBatch.family`."""
        return tuple(self.shares)

    def batches(self, start: int = 0) -> Iterator[SeriesBatch]:
        """Yield the batches from an index on, without end."""
        return map(self.batch, count(start))

    def batch(self, index: int) -> SeriesBatch:
        """Return the batch of an index: `n_series` series of all families in random order."""
        random = np.random.default_rng(np.random.SeedSequence([self.seed, index]))
        share = np.asarray(list(self.shares.values()))
        points = (np.arange(self.n_series) + random.random()) / self.n_series  # systematic: shares hold to a series
        edges = np.cumsum(share[:-1]) / share.sum()
        family = random.permutation(np.searchsorted(edges, points, side="right")).astype(np.int64)
        frequency = self._frequencies(random, family)
        layout = Layout(
            season=SEASON[frequency],
            second=SECOND[frequency],
            history=history_lengths(random, frequency, self.context),
            horizon=self.horizon,
            n_steps=self.context + self.horizon,
        )
        counts = np.asarray([FAMILIES[name].counts for name in self.families])[family]
        values, observed = self._values(random, family, layout, counts), layout.visible
        if self.artefacts:
            values, observed = spoil(random, values, layout, counts, min(1.0, index / max(self.curriculum, 1)))
        return SeriesBatch(
            np.where(observed, values, 0).astype(np.float32),
            observed,
            layout.season,
            layout.second,
            layout.history,
            family,
        )

    def _frequencies(self, random: np.random.Generator, family: Integers) -> Integers:
        """Draw a frequency for each series, weighted by its family."""
        frequency = np.empty(len(family), np.int64)
        for number, name in enumerate(self.families):
            rows, kind = np.flatnonzero(family == number), FAMILIES[name]
            weights = SHARE * np.where(LOW, kind.low, 1.0) * np.where(YEARLY, kind.yearly, 1.0)
            if kind.seasons:
                weights = weights * np.isin(SEASON, kind.seasons)
            frequency[rows] = random.choice(len(SHARE), len(rows), p=weights / weights.sum())
        return frequency

    def _values(self, random: np.random.Generator, family: Integers, layout: Layout, counts: Mask) -> Array:
        """Draw the series of each family, mix some, and give each a unit and a sign; counts stay as they are."""
        values = np.empty((self.n_series, layout.n_steps))
        for number, name in enumerate(self.families):
            rows = np.flatnonzero(family == number)
            if len(rows):
                values[rows] = FAMILIES[name].draw(random, layout.select(rows))
        mixed = (random.random(self.n_series) < self.mixing) & ~counts
        values = mix(random, values, layout, mixed, ~counts)
        sign = np.where(chance(random, 0.5, self.n_series), -1.0, 1.0)
        return np.where(counts[:, None], values, values * log_uniform(random, 0.01, 1e4, self.n_series) * sign)
