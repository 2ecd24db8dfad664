"""Small panels, made as a user's are: from Polars tables. Torch is imported by the fixtures that need it only."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import services
from services import S3

from forecast.config import DataConfig, FitConfig, ModelConfig, WindowConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded

if TYPE_CHECKING:
    from forecast.pretraining.pretrained_network import PretrainedNetwork
    from forecast.training.result import FitResult, Progress
    from forecast.training.teacher import Teacher


class Bucket(NamedTuple):
    """A bucket in S3, and a client of it."""

    client: Any
    name: str


MONDAY = datetime(2024, 1, 1)
LEARNING: dict[str, Any] = {"max_steps": 40, "learning_rate": 2e-2, "ema_decay": 0.9, "validation_every": 10}
RISING: dict[str, Any] = {"static_covariates": ["city", "size"], "known_covariates": ["promo"]}
"""The columns of `rising_table`."""


def make_table(
    series: Mapping[str, Sequence[float | None] | np.ndarray],
    *,
    start: datetime = MONDAY,
    every: timedelta = timedelta(days=1),
    late: Mapping[str, int] | None = None,
    time_zone: str | None = None,
    **columns: Mapping[str, Sequence[Any] | np.ndarray],
) -> pl.DataFrame:
    """A table of regular series; `late[name]` steps after `start`, `columns` are further values per series.

    NaN is a null. `start` is in UTC where there is a time zone.
    """
    parts = []
    for name, values in series.items():
        first = start + (late or {}).get(name, 0) * every
        moments = [first + k * every for k in range(len(values))]
        part = {
            "series_id": [name] * len(values),
            "timestamp": pl.Series(moments, dtype=pl.Datetime("us")),
            "target": pl.Series(values, dtype=pl.Float64).fill_nan(None),
            **{column: pl.Series(by_series[name]) for column, by_series in columns.items()},
        }
        parts.append(pl.DataFrame(part))
    table = pl.concat(parts)
    if time_zone is not None:
        local = pl.col("timestamp").dt.replace_time_zone("UTC").dt.convert_time_zone(time_zone)
        table = table.with_columns(local)
    return table


def read(
    table: pl.DataFrame, horizon: int, categories: dict[str, tuple[str, ...]] | None = None, **data: Any
) -> Loaded:
    return load_panel(table.lazy(), DataConfig.model_validate({"freq": "1d"} | data), horizon, categories)


def weekly_series(n: int, length: int, *, seed: int = 0, noise: float = 0.3) -> dict[str, np.ndarray]:
    """Daily series with a weekly pattern of their own, a level of their own, and noise that lingers."""
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(n):
        pattern, level, size = rng.normal(size=7), rng.uniform(5, 50), rng.uniform(1, 5)
        drift = np.zeros(length)
        shock = rng.normal(size=length)
        for t in range(1, length):
            drift[t] = 0.7 * drift[t - 1] + noise * shock[t]
        made[f"s{i:02d}"] = level + size * (pattern[np.arange(length) % 7] + drift)
    return made


@pytest.fixture(scope="session")
def table() -> Callable[..., pl.DataFrame]:
    return make_table


@pytest.fixture(scope="session")
def loaded() -> Callable[..., Loaded]:
    return read


@pytest.fixture(scope="session")
def weekly() -> Callable[..., dict[str, np.ndarray]]:
    return weekly_series


@pytest.fixture(scope="session")
def train() -> "Callable[..., FitResult]":
    """A tiny training: horizon 7, context 28, a few steps."""
    import torch

    from forecast.training.fit import fit

    torch.set_num_threads(1)

    def run(
        found: Loaded,
        *,
        context: int | None = 28,
        model: dict[str, Any] | None = None,
        progress: "Progress | None" = None,
        teacher: "Teacher | None" = None,
        init: "PretrainedNetwork | None" = None,
        **settings: Any,
    ) -> "FitResult":
        small = {
            "hidden_size": 8,
            "decoder_size": 4,
            "embedding_size": 2,
            "dropout": 0.0,
            "smoothing": False,
            "init": None,
        }
        quick = {"max_steps": 0, "batch_size": 8, "origins": 8, "validation_every": 5, "learning_rate": 5e-3}
        quick |= {"holdout_windows": 4, "validation_windows": 4, "final": False}
        return fit(
            found.panel,
            data=found.data,
            categories=found.categories,
            window=WindowConfig(context_length=context, horizon=found.panel.horizon),
            model=ModelConfig.model_validate(small | (model or {})),
            fit=FitConfig.model_validate(quick | {"accelerator": "cpu"} | settings),
            progress=progress,
            teacher=teacher,
            init=init,
        )

    return run


@pytest.fixture(scope="session")
def weekly_table(table: Callable[..., pl.DataFrame]) -> pl.DataFrame:
    """Eight daily series of up to 160 steps with gaps, two of them late, and all kinds of covariates; promo matters."""
    rng = np.random.default_rng(1)
    series = weekly_series(8, 160, seed=1)
    series["s03"][[20, 21, 90]] = np.nan
    series["s06"] = series["s06"][:100]
    series["s07"] = series["s07"][:60]
    columns = {
        "rain": {name: rng.normal(size=len(values)) for name, values in series.items()},
        "promo": {name: rng.integers(0, 2, len(values)).astype(float) for name, values in series.items()},
        "city": {name: ["oslo" if name < "s04" else "rome"] * len(values) for name, values in series.items()},
        "size": {name: np.full(len(values), float(i)) for i, (name, values) in enumerate(series.items())},
    }
    series = {name: values + 8 * columns["promo"][name] for name, values in series.items()}
    return table(series, late={"s06": 60, "s07": 100}, **columns)


@pytest.fixture(scope="session")
def weekly_loaded(weekly_table: pl.DataFrame) -> Loaded:
    return read(
        weekly_table, 7, past_covariates=["rain"], known_covariates=["promo"], static_covariates=["city", "size"]
    )


@pytest.fixture(scope="session")
def trained(train: "Callable[..., FitResult]", weekly_loaded: Loaded) -> "FitResult":
    """A model of `weekly_loaded` after 40 steps, which is better than the closed form."""
    return train(weekly_loaded, **LEARNING)


@pytest.fixture(scope="session")
def closed_form(train: "Callable[..., FitResult]", weekly_loaded: Loaded) -> "FitResult":
    """A model of `weekly_loaded` without a step of training."""
    return train(weekly_loaded, max_steps=0)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    with services.s3() as server:
        yield server


@pytest.fixture
def bucket(s3_server: S3, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; the environment has what a client needs to know."""
    import boto3

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]
    client = boto3.client("s3", endpoint_url=s3_server.endpoint)
    client.create_bucket(Bucket=name)
    return Bucket(client, name)


@pytest.fixture(scope="session")
def rising_table() -> pl.DataFrame:
    """Series that rise after what `early` is trained on, by more and more; a flat one and a short one.

    A promo, which the closed form does not see, adds 5: so training gains on it, whatever the seed and the processor.
    """
    rng, series = np.random.default_rng(5), weekly_series(6, 120)
    promo = {name: rng.integers(0, 2, 120).astype(float) for name in series}
    for name, values in series.items():
        values += 5 * promo[name]
        values[60:] += 0.1 * np.arange(60) ** 2
    series |= {"flat": np.full(120, 2.0), "short": series["s00"][:8].copy()}
    promo |= {"flat": np.zeros(120), "short": promo["s00"][:8]}
    city = {name: ["oslo" if name < "s03" else "rome"] * len(values) for name, values in series.items()}
    size = {name: np.full(len(values), float(row)) for row, (name, values) in enumerate(series.items())}
    return make_table(series, late={"short": 112}, city=city, size=size, promo=promo)


@pytest.fixture(scope="session")
def rising(rising_table: pl.DataFrame) -> Loaded:
    return read(rising_table, 3, **RISING)


@pytest.fixture(scope="session")
def early(train: "Callable[..., FitResult]", rising_table: pl.DataFrame) -> "FitResult":
    """A model of the first half of `rising`, which all its series gain from being fine-tuned on the rest."""
    found = read(rising_table.filter(pl.col("timestamp") < datetime(2024, 3, 1)), 3, **RISING)
    made = train(found, context=14, holdout_windows=0, **(LEARNING | {"max_steps": 30}))
    assert made.summary["best_step"] > 0, "the closed form alone has no gradient through the decoder"
    return made
