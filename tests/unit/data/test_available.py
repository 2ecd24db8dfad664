"""Stock-outs and closures (data.available): such targets are not observed; closed steps of the horizon are known."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig, SourceConfig
from forecast.data.ages import ages
from forecast.data.availability import closed_ahead
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.read import read_panel
from forecast.data.sources.open import Tables
from forecast.data.windows import windows_at
from forecast.errors import ConfigError, DataError

FIRST = datetime(2024, 1, 1)
HORIZON = 3


def rows(in_stock: list[Any], target: list[float | None] | None = None, name: str = "a") -> pl.DataFrame:
    n = len(in_stock)
    return pl.DataFrame(
        {
            "series_id": [name] * n,
            "timestamp": [FIRST + timedelta(days=k) for k in range(n)],
            "target": [float(k + 1) for k in range(n)] if target is None else target,
            "in_stock": in_stock,
        },
        schema_overrides={"target": pl.Float64 if target is None or not isinstance(target[0], str) else pl.String},
    )


def load(table: pl.DataFrame, known: pl.DataFrame | None = None, horizon: int = HORIZON, **data: Any) -> Loaded:
    config = DataConfig.model_validate({"freq": "1d", "available": "in_stock", "max_reject_share": 1.0} | data)
    loaded = load_panel(Tables(table.lazy(), None if known is None else known.lazy()), config, horizon)
    counts = loaded.counts
    accounted = counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    assert counts.rows_in == accounted
    return loaded


def targets(panel: Panel) -> list[float]:
    return np.nan_to_num(panel.target, nan=-1).tolist()


def ahead(loaded: Loaded, cutoff: int) -> list[list[bool]]:
    panel = loaded.panel
    return closed_ahead(panel, windows_at(panel, int(panel.start.min()) + cutoff), HORIZON).tolist()


def test_a_target_out_of_stock_is_unobserved_and_counted_and_a_null_is_in_stock() -> None:
    loaded = load(rows([1, 0, None, 1, 0, 1]))
    assert targets(loaded.panel) == [1, -1, 3, 4, -1, 6]
    assert (loaded.counts.rows_masked, loaded.counts.steps_filled, loaded.counts.rows_kept) == (2, 2, 6)
    assert targets(load(rows([True, False, True])).panel) == [1, -1, 3]


def test_a_series_begins_with_a_sale_and_a_series_never_in_stock_is_a_reject() -> None:
    table = pl.concat([rows([0, 0, 1, 1]), rows([0, 0, 0], name="b"), rows([1, 1, 1, 1], name="c")])
    loaded = load(table)
    assert loaded.panel.series_id.tolist() == ["a", "c"]
    assert targets(loaded.panel) == [3, 4, 1, 2, 3, 4]
    assert (loaded.panel.start - loaded.panel.start[1]).tolist() == [2, 0]
    assert loaded.rejects.select("series_id", "reason").rows() == [("b", "no observed target")]
    assert (loaded.counts.rows_rejected, loaded.counts.series_rejected) == (3, 1)


def test_a_series_out_of_stock_at_the_end_has_not_ended_and_reaches_over_the_horizon() -> None:
    table = pl.concat([rows([1, 1, 0, 0, 0, 0]), rows([1] * 6, name="b"), rows([1, 1], name="c")])
    loaded = load(table)
    assert loaded.panel.lengths.tolist() == [6, 6, 2]
    cutoff = loaded.panel.last_index
    assert ages(loaded.panel, windows_at(loaded.panel, cutoff)).tolist() == [0, 0, 4]
    before = windows_at(loaded.panel, cutoff - 3)
    assert ages(loaded.panel, before).tolist() == [0, 0, 1]


def test_planned_closures_are_in_rows_of_the_future_or_in_the_table_of_known_covariates() -> None:
    table = rows([1, 1, 1, 1, 0, 1], [1, 2, 3, None, None, None])
    assert ahead(load(table), 2) == [[False, True, False]]
    history = rows([1, 0, 1])
    calendar = rows([1, 1, 1, 1, 0, 1]).select("timestamp", "in_stock")
    by_series = load(history, calendar.with_columns(series_id=pl.lit("a")))
    shared = load(history.drop("in_stock"), calendar)
    assert ahead(by_series, 2) == ahead(shared, 2) == [[False, True, False]]
    assert targets(by_series.panel) == [1, -1, 3], "closed where one of the tables says so"
    assert targets(shared.panel) == [1, 2, 3]
    closed_before = load(history.drop("in_stock"), calendar.with_columns(in_stock=pl.Series([1, 1, 0, 1, 1, 1])))
    assert targets(closed_before.panel) == [1, 2, -1]


@pytest.mark.parametrize("kind", ["sum", "mean", "last"])
def test_higher_frequency_rows_out_of_stock_are_not_aggregated(kind: str) -> None:
    days, hours = 4, 24
    table = pl.DataFrame(
        {
            "series_id": "a",
            "timestamp": [FIRST + timedelta(hours=k) for k in range(days * hours)],
            "target": np.ones(days * hours),
        }
    )
    stock = np.ones(days * hours)
    stock[24:30] = 0  # A part of the second day, and all of the third.
    stock[48:72] = 0
    loaded = load(
        table.with_columns(in_stock=stock, target=pl.Series(np.where(stock == 0, 100.0, 1.0))), aggregate=kind
    )
    whole = 24.0 if kind == "sum" else 1.0
    assert targets(loaded.panel) == [whole, -1 if kind == "sum" else 1.0, -1, whole]
    assert loaded.counts.rows_rejected == 0


@pytest.mark.parametrize(("value", "shown"), [(2.0, "2"), (0.5, "0.5"), (-1.0, "-1"), (float("inf"), "inf")])
def test_other_values_are_rejects(value: float, shown: str) -> None:
    loaded = load(rows([1.0, value, 0.0, 1.0]))
    assert loaded.rejects.select("reason", "value").rows() == [("in_stock neither 0 nor 1", value)]
    with pytest.raises(DataError, match=rf"in_stock neither 0 nor 1: 1, e.g. a at .*\({shown}\)"):
        load(rows([1.0, value, 0.0, 1.0]), max_reject_share=0.0)


def test_a_text_column_a_missing_one_and_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match=r"'in_stock' \(data.available\) must hold 0 and 1, or truth values, .* String"):
        load(rows(["yes", "no"]))
    with pytest.raises(DataError, match=r"no column 'in_stock' \(data.available"):
        load(rows([1, 0]).drop("in_stock"))
    calendar = rows([1, 1]).select("timestamp", promo="in_stock")
    with pytest.raises(DataError, match=r"no column 'in_stock' \(data.available"):
        load(rows([1, 0]).drop("in_stock"), calendar, known_covariates=["promo"])
    with pytest.raises(DataError, match=r"holds classes, of which data.available=in_stock can't be taken"):
        load(rows([1, 0]).with_columns(target=pl.Series(["x", "y"])))
    with pytest.raises(DataError, match=r"data.available=in_stock is 0 in 2 rows with a target"):
        load(rows([0, 0]), max_reject_share=0.0)
    for wrong in ({"layout": "wide"}, {"known_covariates": ["in_stock"]}, {"columns": {"target": "in_stock"}}):
        with pytest.raises(ValueError, match=r"layout=wide has no place|used twice"):
            DataConfig.model_validate({"available": "in_stock"} | wrong)


def test_a_csv_file_may_have_numbers_or_truth_values(tmp_path: Path) -> None:
    for number, values in enumerate((["1", "0", "1"], ["true", "false", "true"], ["True", "False", "True"])):
        path = tmp_path / f"{number}.csv"
        path.write_text(
            "series_id,timestamp,target,in_stock\n"
            + "".join(f"a,2024-01-0{day + 1},{day + 1},{value}\n" for day, value in enumerate(values))
        )
        data = DataConfig(path=str(path), freq="1d", available="in_stock")
        assert targets(read_panel(data, 1).panel) == [1, -1, 3]


def test_settings_without_it_are_stored_as_before() -> None:
    assert "available" not in DataConfig().model_dump_json()
    assert DataConfig.model_validate_json(DataConfig(available="x").model_dump_json()).available == "x"


# --- prepared panels


def random_rows(seed: int) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(5):
        n = int(rng.integers(1, 25))
        stock = np.where(rng.random(n) < 0.4, 0, 1)
        target = [None if rng.random() < 0.1 else float(k) for k in range(n)]
        table = rows(stock.tolist(), target, f"s{number}")
        parts.append(table.filter(pl.Series(rng.random(n) > 0.1)))
    return pl.concat(parts).sample(fraction=1.0, shuffle=True, seed=seed)


def same(first: Panel, second: Panel) -> bool:
    names = ("series_id", "start", "offsets", "target", "available")
    return all(
        np.array_equal(
            *(
                np.nan_to_num(getattr(panel, name), nan=-9) if name != "series_id" else panel.series_id
                for panel in (first, second)
            )
        )
        for name in names
    )


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_a_prepared_panel_and_one_that_grew_hold_what_the_table_does(seed: int, tmp_path_factory: Any) -> None:
    table, folder = random_rows(seed), tmp_path_factory.mktemp("panel")
    data = DataConfig(freq="1d", available="in_stock", max_reject_share=1.0, end_share=0.0)
    try:
        whole = load_panel(table.lazy(), data, HORIZON)
    except DataError:
        return  # No series is left.
    prepared = prepare(Tables(table.lazy()), data, HORIZON, folder / "whole", fingerprint="x", chunk_rows=10).loaded
    assert same(prepared.panel, whole.panel)
    assert (prepared.digest, prepared.counts) == (whole.digest, whole.counts)
    assert open_prepared(folder / "whole", DataConfig(), 1).digest == whole.digest
    until = FIRST + timedelta(days=8)
    early = table.filter(pl.col("timestamp") <= until)
    try:
        prepare(Tables(early.lazy()), data, HORIZON, folder / "parts", fingerprint="x")
        append(
            folder / "parts",
            Tables(table.filter(pl.col("timestamp") > until).lazy()),
            SourceConfig(max_reject_share=1.0),
        )
    except DataError:
        return
    grown = open_prepared(folder / "parts", data, HORIZON)
    assert np.array_equal(grown.panel.series_id, whole.panel.series_id)
    for number in range(whole.panel.n_series):
        one, other = (panel.rows(number, number + 1) for panel in (grown.panel, whole.panel))
        observed = [np.flatnonzero(~np.isnan(panel.target)) + panel.start[0] for panel in (one, other)]
        moments = [panel.grid.timestamps(steps).to_list() for panel, steps in zip((one, other), observed, strict=True)]
        assert moments[0] == moments[1]


def test_a_stock_out_that_is_reported_later_is_a_revision(tmp_path: Path) -> None:
    table, later = rows([1, 1, 1, 1]), rows([1, 0]).with_columns(timestamp=pl.col("timestamp") + timedelta(days=1))
    for revisions, expected in (("accept", [1, -1, -1, 4]), ("refuse", [1, 2, 3, 4])):
        folder = tmp_path / revisions
        prepare(Tables(table.lazy()), DataConfig(freq="1d", available="in_stock"), HORIZON, folder, fingerprint="x")
        change = rows([0], [9.0]).with_columns(timestamp=pl.lit(FIRST + timedelta(days=1)))
        change = pl.concat([change, later.tail(1)])
        appended = append(folder, Tables(change.lazy()), SourceConfig(max_reject_share=1.0), revisions=revisions)
        assert appended.revisions.select("before", "after").rows() == [(2.0, None), (3.0, None)]
        assert targets(appended.loaded.panel) == expected
    with pytest.raises(DataError, match=r"2 values of 1 series differ .*2, now not available"):
        append(tmp_path / "refuse", Tables(change.lazy()), SourceConfig(), revisions="fail")


def test_a_panel_prepared_before_opens_and_one_without_the_column_refuses_it(tmp_path: Path) -> None:
    table = rows([1, 0, 1])
    prepare(Tables(table.lazy()), DataConfig(freq="1d"), HORIZON, tmp_path, fingerprint="x")
    assert not list(tmp_path.glob("data-*/available.npy"))
    assert len(open_prepared(tmp_path, DataConfig(), HORIZON).panel.available) == 0
    with pytest.raises(ConfigError, match=r"data.available: .* was prepared with None, not 'in_stock'"):
        open_prepared(tmp_path, DataConfig(available="in_stock"), HORIZON)
