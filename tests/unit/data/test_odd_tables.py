"""Odd tables: whatever is in one, the answer is a panel, or an error that is the user's to mend."""

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import forecast as fc
from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.prepared.prepare import prepare
from forecast.data.profiling.profile import profile
from forecast.data.profiling.quality import quality
from forecast.data.read import read_panel
from forecast.data.sources.frames import to_lazy
from forecast.data.sources.open import open_tables, used_columns
from forecast.errors import GatecastError

TABLES: Final = 200
TRAINED: Final = 12
"""Every twelfth table is trained on: a training takes longer than all else."""
HORIZON: Final = 2
MODEL: Final = {"hidden_size": 4, "decoder_size": 2, "embedding_size": 2, "num_layers": 1}

Values = Callable[[np.random.Generator, int], list[Any]]

IDS: Final[list[Any]] = [
    "a", "b", "", " ", "007", "7", "3.10", "1e5", "NA", "null", "a\0", "\0", "x" * 3000, "zürich", "🙂", "a\nb", "*",
    "^a$", "../x", "'; drop table t; --", "<b>", "=1+1", "\ufeff", "a,b", 'say "x"', "NaN", "-", "None", None,
]  # fmt: skip
NAMES: Final = [
    "*", "^.*$", "a\0b", "", " ", "index", "Unnamed: 0", "x.y", "a b", "é", "rows", "timestamp ", "target ", "name",
    "value", "series", "step", "q50", "cutoff", "mean", "source", "x" * 300,
]  # fmt: skip
FIRST: Final = datetime(2024, 1, 1)


def _targets(rng: np.random.Generator, n: int) -> list[Any]:
    plain = rng.normal(10, 3, n)
    kinds: list[Callable[[], list[Any]]] = [
        plain.tolist,
        lambda: rng.poisson(1, n).tolist(),
        lambda: [*plain[:-1].tolist(), float(rng.choice([np.inf, -np.inf, np.nan]))] if n else [],
        (plain * 10.0 ** rng.integers(-30, 30)).tolist,
        (1.7e9 + plain).tolist,
        lambda: [0.0] * n,
        lambda: [None] * n,
        lambda: [None if rng.random() < 0.3 else float(value) for value in plain],
        lambda: [f"{value:.2f}" for value in plain],
        lambda: [f"{value * 1000:,.2f}" for value in plain],
        lambda: [f"{value:.2f}".replace(".", ",") for value in plain],
        lambda: [f"{value * 1000:,.0f}" for value in plain],
        lambda: ["NA" if rng.random() < 0.2 else f"{value:.1f}" for value in plain],
        lambda: ["x" if rng.random() < 0.1 else f"{value:.1f}" for value in plain],
        lambda: rng.choice(["yes", "no", "may be"], n).tolist(),
        (rng.random(n) < 0.5).tolist,
        lambda: [str(number) for number in range(n)],
        lambda: [[1.0]] * n,
        lambda: [date(2024, 1, 1)] * n,
        lambda: [b"x"] * n,
        lambda: [{"a": 1}] * n,
        (2**62 + rng.integers(0, 9, n)).tolist,
        lambda: [timedelta(days=1)] * n,
    ]
    return kinds[rng.choice(len(kinds), p=_mostly_first(len(kinds)))]()


def _mostly_first(n: int) -> np.ndarray:
    """Return probabilities of n kinds: a third is the first one, else few tables would be panels."""
    return np.array([1 / 3, *[2 / 3 / (n - 1)] * (n - 1)])


def _times(rng: np.random.Generator, n: int) -> list[Any]:
    days = [FIRST + timedelta(days=k) for k in range(n)]
    zone = timedelta(hours=int(rng.integers(-12, 12)))
    kinds: list[Callable[[], list[Any]]] = [
        lambda: days,
        lambda: [moment.date() for moment in days],
        lambda: [moment.replace(tzinfo=UTC) for moment in days],
        lambda: [f"{moment:%Y-%m-%d}" for moment in days],
        lambda: [f"{moment:%Y-%m-%d %H:%M:%S} UTC" for moment in days],
        lambda: [f"{moment:%Y-%m-%dT%H:%M:%S}{'+01:00' if k % 2 else ''}" for k, moment in enumerate(days)],
        lambda: [f"{moment:%d/%m/%Y}" for moment in days],
        lambda: [int(f"{moment:%Y%m%d}") for moment in days],
        lambda: [1900 + k for k in range(n)],
        lambda: [str(1900 + k) for k in range(n)],
        lambda: [*range(n)],
        lambda: [1_700_000_000 + 86_400 * k for k in range(n)],
        lambda: [float(k) / 3 for k in range(n)],
        lambda: [FIRST + timedelta(hours=k) for k in range(n)],
        lambda: [FIRST + timedelta(days=k, seconds=int(rng.integers(0, 9))) for k in range(n)],
        lambda: [FIRST] * n,
        lambda: [None] * n,
        lambda: [*days[:-1], datetime(9999, 12, 31)] if n else [],
        lambda: [datetime(1, 1, 1), *days[1:]] if n else [],
        lambda: [*days[: n // 2], *days[: n - n // 2]],
        lambda: ["soon"] * n,
        lambda: [True] * n,
        lambda: [moment + zone for moment in days],
        rng.permutation(np.array(days, dtype=object)).tolist,
    ]
    return kinds[rng.choice(len(kinds), p=_mostly_first(len(kinds)))]()


def _ids(rng: np.random.Generator, n_series: int) -> list[Any]:
    kinds: list[Callable[[], list[Any]]] = [
        lambda: [f"s{k}" for k in range(n_series)],
        lambda: [IDS[k] for k in rng.integers(0, len(IDS), n_series)],
        lambda: list(range(n_series)),
        lambda: [float(k) for k in range(n_series)],
        lambda: [None] * n_series,
        lambda: [date(2024, 1, 1 + k) for k in range(n_series)],
    ]
    return kinds[rng.choice(len(kinds), p=[0.35, 0.45, 0.05, 0.05, 0.05, 0.05])]()


def odd_table(seed: int) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Return a table, and the settings of `data` to read it with."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([0, 1, 2, 3, 20, 40], p=[0.03, 0.05, 0.05, 0.07, 0.4, 0.4]))
    data: dict[str, Any] = {"freq": "1d"} if rng.random() < 0.5 else {}
    if rng.random() < 0.2:
        columns: dict[str, Any] = {"timestamp": _times(rng, n)}
        for name in rng.permutation([*NAMES, *(name for name in IDS if name)])[: int(rng.integers(1, 6))].tolist():
            columns[str(name)] = _targets(rng, n)
        return _frame(columns), data | {"layout": "wide"}
    parts: list[dict[str, list[Any]]] = []
    times, extras = _times(rng, n), [str(name) for name in rng.permutation(NAMES)[: int(rng.integers(0, 4))]]
    targets, kinds = _targets(rng, n), {name: _targets(rng, n) for name in extras}
    for series in _ids(rng, int(rng.integers(1, 4))):
        parts.append({"series_id": [series] * n, "timestamp": times, "target": targets, **kinds})
    columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    roles = ["past_covariates", "known_covariates", "static_covariates"]
    named: dict[str, list[str]] = {}
    for name in extras:
        if rng.random() < 0.6:
            named.setdefault(str(rng.choice(roles)), []).append(name)
    renamed = str(rng.choice(NAMES)) if rng.random() < 0.3 else "target"
    if renamed not in columns:
        columns = {renamed if name == "target" else name: values for name, values in columns.items()}
        data["columns"] = {"series_id": "series_id", "timestamp": "timestamp", "target": renamed}
    choices: list[dict[str, Any]] = [
        {}, {}, {"max_reject_share": 1.0}, {"max_reject_share": 1.0}, {"aggregate": "sum", "freq": "1w"},
        {"decimal": ","}, {"null_values": ["x", "0"]}, {"timestamp_format": "%d/%m/%Y"}, {"lags": [1]},
        {"time_zone": "Europe/Berlin"}, {"rolling": ["mean_3"]}, {"timestamp_format": "s"},
    ]  # fmt: skip
    return _frame(columns), data | named | choices[int(rng.integers(len(choices)))]


def _frame(columns: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([pl.Series(name, values, strict=False) for name, values in columns.items()])


def read_as(kind: int, frame: pl.DataFrame, data: DataConfig, folder: Path) -> Loaded:
    """Return the panel by one of the ways that a table takes: a frame, pandas, Arrow, Parquet, CSV, or prepared."""
    named = used_columns(data).rows
    if kind == 0:
        return load_panel(frame.lazy(), data, HORIZON)
    if kind == 1:
        columns = {name: frame.to_series(position).to_list() for position, name in enumerate(frame.columns)}
        return load_panel(to_lazy(pd.DataFrame(columns), named), data, HORIZON)
    if kind == 2:
        columns = [pa.array(frame.to_series(position).to_list()) for position in range(frame.width)]
        names = [name.replace("\0", "0") for name in frame.columns]
        return load_panel(to_lazy(pa.table(columns, names=names), named), data, HORIZON)
    path = folder / ("a.csv" if kind == 4 else "a.parquet")
    try:
        frame.write_csv(path) if kind == 4 else frame.write_parquet(path)
    except pl.exceptions.ComputeError:  # No file holds that: lists in CSV.
        return load_panel(frame.lazy(), data, HORIZON)
    data = data.model_copy(update={"path": str(path)})
    if kind == 5:
        return prepare(open_tables(data), data, HORIZON, folder / "panel", chunk_rows=30).loaded
    return read_panel(data, HORIZON)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[Loaded | GatecastError]:
    """Read all odd tables; anything but a panel or one of our errors is raised, with the number of the table."""
    found: list[Loaded | GatecastError] = []
    for seed in range(TABLES):
        frame, settings = odd_table(seed)
        try:
            data = DataConfig.model_validate(settings)
            loaded = read_as(seed % 6, frame, data, tmp_path_factory.mktemp("odd"))
            assert loaded.data.season_length is not None
            profile(loaded.panel, loaded.data.season_length, loaded.classes)
            quality(loaded.rejects, loaded.counts)
            found.append(loaded)
        except GatecastError as error:
            found.append(error)
        except BaseException as error:
            error.add_note(f"table {seed}: {frame} with {settings}")
            raise
    return found


def test_every_odd_table_is_a_panel_or_an_error_of_the_users(outcomes: list[Loaded | GatecastError]) -> None:
    panels = [found for found in outcomes if isinstance(found, Loaded)]
    assert len(outcomes) == TABLES
    assert len(panels) > TABLES // 8
    for error in outcomes:
        if isinstance(error, GatecastError):
            assert error.exit_code in (2, 3)
            assert len(str(error)) > 20


def test_the_panels_of_odd_tables_account_for_every_row(outcomes: list[Loaded | GatecastError]) -> None:
    for found in outcomes:
        if isinstance(found, Loaded):
            counts, panel = found.counts, found.panel
            parts = counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
            assert parts == counts.rows_in
            assert panel.series_id.tolist() == sorted(set(panel.series_id.tolist()))
            ends = panel.target[np.append(panel.offsets[:-1], panel.offsets[1:] - 1)]
            assert not np.isnan(ends).any()
            assert not np.isinf(panel.target).any()


def test_training_on_odd_panels_forecasts_or_says_why_not(tmp_path: Path) -> None:
    results: dict[str, list[int]] = {"trained": [], "refused": []}
    for seed in range(0, TABLES, TRAINED):
        frame, settings = odd_table(seed)
        try:
            model = fc.train(
                frame, horizon=1, context_length=4, data=settings, model=MODEL,
                fit={"max_steps": 0, "holdout_windows": 1, "validation_windows": 1, "accelerator": "cpu"},
            ).artifact  # fmt: skip
            model.save(tmp_path / str(seed))
            forecasts = fc.forecast(fc.load(tmp_path / str(seed)), frame).frame
            assert forecasts.height % model.horizon == 0
            results["trained"].append(0)
        except GatecastError as error:
            results["refused"].append(error.exit_code)
    assert results["trained"]
    assert {*results["refused"]} <= {2, 3}
    assert sum(map(len, results.values())) == len(range(0, TABLES, TRAINED))


def test_a_table_is_the_same_panel_by_every_way(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "series_id": ["a"] * 5 + ["b c"] * 5,
            "timestamp": [FIRST + timedelta(days=k) for k in range(5)] * 2,
            "target": ["1.234,5", "2", "NA", "0,5", "7"] * 2,
            "*": ["1,5"] * 10,
        }
    )
    data = DataConfig(freq="1d", static_covariates=("*",))
    digests = set()
    for kind in range(6):
        (tmp_path / str(kind)).mkdir()
        digests.add(read_as(kind, frame, data, tmp_path / str(kind)).panel.digest())
    assert len(digests) == 1
