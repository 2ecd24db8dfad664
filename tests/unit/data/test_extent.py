"""Where a panel ends: series agree, a date typed wrong does not count, and every row is accounted for."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig, SourceConfig
from forecast.data.ingest.extent import common_end
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.rejects import DISTANT, LATE
from forecast.data.prepared.append import append
from forecast.data.prepared.open import open_prepared
from forecast.data.prepared.prepare import prepare
from forecast.data.sources.open import Tables
from forecast.errors import DataError

FIRST = datetime(2023, 1, 1)
DATA: dict[str, Any] = {"freq": "1d", "max_reject_share": 1.0}

Steps = Mapping[str, list[int]]


def table(series: Steps, step: timedelta = timedelta(days=1)) -> pl.DataFrame:
    rows = [(name, FIRST + step * at, float(at)) for name, steps in series.items() for at in steps]
    return pl.DataFrame(rows, schema=["series_id", "timestamp", "target"], orient="row").with_columns(
        pl.col("timestamp").cast(pl.Datetime("us"))
    )


def load(series: Steps, **data: Any) -> Loaded:
    return checked(load_panel(table(series).lazy(), DataConfig.model_validate(DATA | data), 2))


def checked(loaded: Loaded) -> Loaded:
    counts = loaded.counts
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    assert counts.series_in == counts.series_kept + counts.series_rejected
    assert counts.series_kept == loaded.panel.n_series
    return loaded


def end_of(series: Steps) -> int:
    steps = [np.array(sorted(at)) for at in series.values()]
    first, last = (np.array([at[edge] for at in steps]) for edge in (0, -1))
    return common_end(first, last, steps.__getitem__, 0.05)


def until(last: int, first: int = 0) -> list[int]:
    return list(range(first, last + 1))


def alike(count: int, last: int = 100) -> dict[str, list[int]]:
    return {f"s{number:02d}": until(last) for number in range(count)}


AGREED = {
    "nobody is late": alike(3),
    "one row of 50": alike(50) | {"s00": [*until(100), 190]},
    "one row of 50, the next day": alike(50) | {"s00": until(101)},
    "one row of 5": alike(5) | {"s00": [*until(100), 465]},
    "one row of 2": alike(2) | {"s00": [*until(100), 465]},
    "the last row itself": alike(5) | {"s00": [*until(99), 465]},
    "two rows of two series, at two times": alike(30) | {"s00": [*until(100), 120], "s01": [*until(100), 465]},
    "two rows of one series": alike(6) | {"s00": [*until(100), 190, 465]},
    "a week of rows a year late": alike(6) | {"s00": [*until(100), *until(471, 465)]},
    "a new series with one row, a year late": alike(40) | {"new": [465]},
    "rows of one series that are written ahead": alike(50) | {"s00": until(160)},
    "beside series that ended early": {f"e{n}": until(5 * n) for n in range(1, 9)}
    | alike(8)
    | {"s00": [*until(100), 400]},
    "ends that differ a little": {f"s{n:02d}": until(100 - n % 9) for n in range(30)} | {"s29": [*until(98), 300]},
    "the series of the latest row is the only one alive": {"a": until(40), "b": [*until(100), 465], "c": until(60)},
}  # fmt: skip

LATEST = {
    "one series": {"a": until(100)},
    "two series, one of which ended": {"a": until(30), "b": until(100)},
    "half of the series ended on one day": alike(25, 40) | {f"t{n:02d}": until(100) for n in range(25)},
    "most series ended, here and there": {f"s{n:02d}": until(n) for n in range(96)} | {"x": until(100)},
    "a third has the newest row": alike(70, 99) | {f"t{n:02d}": until(100) for n in range(30)},
    "ends are ragged everywhere": {f"s{n:02d}": until(100 - n) for n in range(50)},
    "short series beside a long one": {f"s{n:02d}": [0] for n in range(60)} | {"long": until(100)},
    "one is back after a break that others had too": {"a": [*until(40), *until(100, 70)], "b": [*until(40), 100]},
    "one series with a hole": {"a": [*until(50), 100]},
    "a sparse series is the latest": alike(4, 90) | {"s03": [0, 30, 65, 100]},
    "all have the same hole": {f"s{n}": [*until(50), 100] for n in range(6)},
}  # fmt: skip


@pytest.mark.parametrize("series", AGREED.values(), ids=AGREED)
def test_a_panel_ends_where_its_series_agree(series: Steps) -> None:
    assert end_of(series) == 100


@pytest.mark.parametrize("series", LATEST.values(), ids=LATEST)
def test_a_panel_ends_at_its_latest_row_where_that_is_not_in_doubt(series: Steps) -> None:
    assert end_of(series) == 100


@pytest.mark.parametrize("name", AGREED)
def test_late_rows_are_rejects_and_the_panel_is_the_one_without_them(name: str) -> None:
    series = AGREED[name]
    loaded = load(series)
    right = {key: [at for at in steps if at <= 100] for key, steps in series.items()}
    assert loaded.panel.digest() == load({key: steps for key, steps in right.items() if steps}).panel.digest()
    late = {(key, FIRST + timedelta(days=at)) for key, steps in series.items() for at in steps if at > 100}
    rejects = loaded.rejects.filter(reason=LATE)
    assert set(rejects.select("series_id", "timestamp").rows()) == late
    assert loaded.counts.rows_rejected == rejects.height == len(late)


@given(
    ends=st.lists(st.integers(60, 100), min_size=20, max_size=40),
    ahead=st.integers(30, 2000),
    seed=st.integers(0, 10),
)
@settings(deadline=None, max_examples=40)
def test_one_more_row_far_ahead_moves_no_end_by_more_than_the_series_differ(
    ends: list[int], ahead: int, seed: int
) -> None:
    series = {f"s{number:02d}": until(end) for number, end in enumerate(ends)}
    before = end_of(series)
    name = f"s{np.random.default_rng(seed).integers(len(ends)):02d}"
    assert end_of(series | {name: [*series[name], 100 + ahead]}) == before


def sparse(seed: int, count: int) -> dict[str, list[int]]:
    rng = np.random.default_rng(seed)
    return {f"s{number:02d}": sorted({0, *rng.integers(0, 101, 12).tolist()}) for number in range(count)}


@given(seed=st.integers(0, 1000), count=st.integers(1, 60))
@settings(deadline=None, max_examples=60)
def test_sparse_rows_are_all_kept(seed: int, count: int) -> None:
    series = sparse(seed, count)
    assert end_of(series) == max(steps[-1] for steps in series.values())


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_a_row_far_ahead_of_sparse_ones_is_late(seed: int) -> None:
    series = sparse(seed, 40)
    right = max(steps[-1] for name, steps in series.items() if name != "s00")
    assert end_of(series | {"s00": [*series["s00"], 190]}) in (right, max(right, series["s00"][-1]))


def test_the_order_of_rows_and_series_does_not_matter() -> None:
    rows = table(AGREED["two rows of two series, at two times"])
    loaded = [
        load_panel(rows.sample(fraction=1, shuffle=True, seed=seed).lazy(), DataConfig.model_validate(DATA), 2)
        for seed in range(3)
    ]
    assert len({each.panel.digest() for each in loaded}) == 1
    assert all(each.rejects.equals(loaded[0].rejects) for each in loaded)


def test_the_log_names_series_time_and_setting(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(AGREED["one row of 50"])
    assert (
        "the panel ends at 2023-04-11 00:00:00, where its series agree; 1 row(s) of 1 of 50 series are later and "
        "rejected: s00 at 2023-07-10 00:00:00 (190); if these dates are right, set data.end_share=0"
    ) in caplog.text


def test_a_hole_before_the_end_of_all_is_named_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load(LATEST["all have the same hole"])
    assert loaded.panel.last_index - int(loaded.panel.start[0]) == 100
    assert "none between 2023-02-20 00:00:00 and 2023-04-11 00:00:00, and 1 since" in caplog.text


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("count", [3, 5, 12])
def test_one_of_few_series_that_is_a_few_steps_ahead_is_named_and_kept(
    steps: int, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = alike(count) | {"s01": [*until(100), 100 + steps]}
    with caplog.at_level(logging.WARNING):
        loaded = load(ahead)
    assert loaded.panel.last_index - int(loaded.panel.start[0]) == 100 + steps
    assert loaded.rejects.is_empty()
    end = FIRST + timedelta(days=100 + steps)
    assert f"the panel ends at {end}, which only s01 of {count} series reaches" in caplog.text
    assert f"; {count - 1} end at 2023-04-11 00:00:00, {steps} step(s) before" in caplog.text
    assert "data.until=2023-04-11T00:00:00" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = load(ahead, until="2023-04-11")
    assert again.panel.last_index - int(again.panel.start[0]) == 100
    assert not caplog.text


@pytest.mark.parametrize(
    "series",
    [
        alike(5),
        alike(2) | {"s01": until(101)},
        {f"s{number}": until(100 - number) for number in range(6)},
        alike(4) | {"s01": until(102), "s02": until(102)},
        {"a": until(40), "b": until(40), "c": until(40), "d": until(100)},
    ],
    ids=["together", "two series", "all differ", "two ahead", "one alive"],
)
def test_series_that_end_in_another_way_are_not_named(series: Steps, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        load(series)
    assert "which only" not in caplog.text


def test_all_rows_count_where_the_setting_is_0(caplog: pytest.LogCaptureFixture) -> None:
    series = AGREED["one row of 50"]
    with caplog.at_level(logging.WARNING):
        loaded = load(series, end_share=0)
    assert loaded.panel.last_index - int(loaded.panel.start[0]) == 190
    assert loaded.rejects.is_empty()
    assert not caplog.text


def test_rows_after_until_are_not_late() -> None:
    loaded = load(AGREED["one row of 50"], until="2023-04-11")
    assert loaded.rejects.is_empty()
    assert loaded.counts.rows_after_until == 1


def test_on_error_fail_stops_and_names_the_row() -> None:
    with pytest.raises(DataError, match=rf"{LATE}: 1, e.g. s00 at 2023-07-10 00:00:00 \(190\)\n.*data.end_share=0"):
        load(AGREED["one row of 50"], on_error="fail")


def test_known_rows_without_a_target_may_be_later() -> None:
    rows = table(alike(30)).with_columns(price=1.0)
    ahead = table({"s00": until(130, 101)}).with_columns(price=2.0, target=pl.lit(None, pl.Float64))
    late = table({"s01": [190]}).with_columns(price=3.0)
    loaded = checked(
        load_panel(pl.concat([rows, ahead, late]).lazy(), DataConfig(**DATA, known_covariates=("price",)), 2)
    )
    assert loaded.counts.rows_future == 30
    assert loaded.rejects["reason"].to_list() == [LATE]
    held = loaded.panel.known[0, : 101 + 2]
    assert held[-2:].tolist() == [2.0, 2.0]


def test_a_wide_table_has_stragglers_too() -> None:
    wide = table(AGREED["one row of 5"]).pivot(on="series_id", index="timestamp", values="target").sort("timestamp")
    loaded = checked(load_panel(wide.lazy(), DataConfig(**DATA, layout="wide"), 2))
    assert loaded.rejects.rows() == [("s00", FIRST + timedelta(days=465), LATE, 465.0)]


@pytest.mark.parametrize("shared", [True, False])
def test_a_table_of_known_covariates_may_have_a_date_of_another_age(shared: bool) -> None:
    prices = table({"s00": [*until(110), 150]}).select("series_id", "timestamp", price="target")
    wrong = prices.head(1).with_columns(timestamp=pl.lit(datetime(9999, 1, 1)).cast(pl.Datetime("us")))
    known = pl.concat([prices, wrong])
    known = known.drop("series_id") if shared else known
    rows = Tables(table(alike(2)).lazy(), known.lazy())
    loaded = checked(load_panel(rows, DataConfig(**DATA, known_covariates=("price",)), 2))
    assert loaded.rejects["reason"].to_list() == [f"data.known_path: {DISTANT}"]
    assert loaded.counts.known_rows_rejected == 1
    assert loaded.panel.known[0, :103].tolist() == until(102)


@pytest.mark.parametrize("name", ["one row of 50", "two rows of one series", "a new series with one row, a year late"])
def test_a_prepared_panel_ends_where_the_table_does(tmp_path: Path, name: str) -> None:
    rows, data = Tables(table(AGREED[name]).lazy()), DataConfig(**DATA)
    here = load_panel(rows, data, 2)
    there = checked(prepare(rows, data, 2, tmp_path / "panel", chunk_rows=300).loaded)
    assert there.panel.digest() == here.panel.digest() == there.digest
    late = pl.col("reason") == LATE
    assert there.rejects.filter(late).equals(here.rejects.filter(late))
    assert there.counts.rows_rejected == here.counts.rows_rejected
    kept = open_prepared(tmp_path / "panel", data.model_copy(update={"end_share": 0.0}), 2)
    assert kept.panel.last_index > here.panel.last_index


def test_an_early_row_counts_once_the_others_have_come(tmp_path: Path) -> None:
    data = DataConfig(**DATA)
    prepared = prepare(Tables(table(alike(40) | {"s00": until(101)}).lazy()), data, 2, tmp_path / "panel").loaded
    begin = int(prepared.panel.start[0])
    assert prepared.panel.last_index - begin == 100
    rest = table({f"s{number:02d}": [101] for number in range(1, 40)})
    grown = append(tmp_path / "panel", Tables(rest.lazy()), SourceConfig()).loaded
    assert grown.panel.last_index - begin == 101
    assert grown.rejects.is_empty()
    assert grown.panel.digest() == load(alike(40, 101)).panel.digest()


@pytest.mark.parametrize("moment", [datetime(1023, 1, 1), datetime(1900, 1, 1), datetime(9999, 12, 31)])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_a_date_of_another_age_is_a_reject_on_either_side(moment: datetime, count: int) -> None:
    rows = table(alike(count))
    wrong = pl.DataFrame({"series_id": ["s00"], "timestamp": [moment], "target": [5.0]})
    wrong = wrong.with_columns(pl.col("timestamp").cast(pl.Datetime("us")))
    loaded = checked(load_panel(pl.concat([wrong, rows]).lazy(), DataConfig(**DATA), 2))
    assert loaded.rejects.rows() == [("s00", moment, DISTANT, 5.0)]
    assert loaded.panel.digest() == load(alike(count)).panel.digest()
    assert loaded.panel.calendar.shape[1] == 101 + 2


def test_sparse_series_are_not_torn() -> None:
    sparse = {"a": [0, 400, 900, 1500, 2600], "b": [*until(10), 800], "c": [0, 3000]}
    assert load(sparse).rejects.is_empty()


@pytest.mark.parametrize("aggregate", ["sum", "last"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_late_row_does_not_end_a_period_that_is_not_over(aggregate: str, chunked: bool, tmp_path: Path) -> None:
    hours = table({f"s{number}": until(24 * 20 + 5) for number in range(30)}, timedelta(hours=1))
    late = pl.DataFrame({"series_id": ["s0"], "timestamp": [datetime(2023, 6, 1)], "target": [1.0]})
    late = late.with_columns(pl.col("timestamp").cast(pl.Datetime("us")))
    data = DataConfig(freq="1d", aggregate=aggregate, max_reject_share=1.0)
    right = load_panel(hours.lazy(), data, 2)
    both = Tables(pl.concat([hours, late]).lazy())
    loaded = prepare(both, data, 2, tmp_path / "panel").loaded if chunked else load_panel(both, data, 2)
    assert checked(loaded).panel.digest() == right.panel.digest()
    assert loaded.counts.rows_rejected == right.counts.rows_rejected + 1
