"""The shape of a network: lengths, columns and categories, besides its ModelConfig."""

from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, kw_only=True)
class NetworkShape:
    """Lengths, columns and categories that a network is built from, besides its ModelConfig."""

    context_length: int
    horizon: int
    season_length: int
    n_past: int
    n_known: int
    """Known covariates of the user, without the calendar."""
    n_calendar: int
    category_sizes: tuple[int, ...]
    """Values of each categorical static covariate, the unseen one not counted."""
    n_static_numbers: int
    anchor: str = "level"
    """`level` or `last`."""
    segment_length: int = 1
    """Steps that the encoder takes in at once; divides the context."""
    past_categories: tuple[int, ...] = ()
    """Values of each past covariate, the unseen one not counted; 0 for a number, and empty if all are numbers."""
    known_categories: tuple[int, ...] = ()
    """The same for each known covariate."""
    n_classes: int = 0
    """Classes of the target, whose values are then codes; 0 for a numeric target."""
    unit: float = 0.0
    """Unit of the logarithmic scale of the target (`transform`); 0 for a linear scale."""
    spread_seasons: int = 1
    """Number of latest seasonal differences in the spread of a phase."""
    nonnegative: bool = False
    """Whether targets are amounts: none below 0, and some 0. Forecasts are then clipped at 0."""
    smoothing: bool = False
    """Whether the skip has a share of exponential smoothing (`models.linear.smoothing`)."""

    def to_json(self) -> dict[str, Any]:
        """Return the shape as JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Return the shape that `to_json` wrote."""
        sizes = {name: tuple(values[name]) for name in values if isinstance(values[name], list)}
        return cls(**values | sizes)

    @property
    def scale_length(self) -> int:
        """Steps in level and scale: one season, at least half the context."""
        return max(self.context_length // 2, min(self.season_length, self.context_length), 1)

    @property
    def season_lags(self) -> tuple[int, ...]:
        """Lags of the same phase: the last four seasons and the seventh, if in the context."""
        if self.season_length == 1:
            return ()
        return tuple(k * self.season_length for k in (1, 2, 3, 4, 7) if k * self.season_length <= self.context_length)

    @property
    def input_lags(self) -> tuple[int, ...]:
        """Seasonal lags that the encoder reads, counted from the next segment."""
        return tuple(lag for lag in self.season_lags if lag > self.segment_length)

    @property
    def season_reach(self) -> int:
        """Steps up to an origin, in the context, that the spread and the features of past seasons depend on."""
        reach = max((self.spread_seasons + 1) * self.season_length, *self.season_lags, 0) + self.season_length // 14
        return min(reach, self.context_length)

    @property
    def lead(self) -> int:
        """Steps before a segment that its inputs depend on, in whole segments."""
        reach = max([self.scale_length, *(lag - self.segment_length for lag in self.input_lags)])
        return -(-reach // self.segment_length) * self.segment_length

    def origins(self, span: int) -> int:
        """Return the number of origins in `span` consecutive steps: one in each segment."""
        return -(-span // self.segment_length)
