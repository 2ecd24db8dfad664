"""From table to panel: `daily` makes a table of daily rows from 2013-01-01, `load` reads it with the horizon 2."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.sources.frames import to_lazy
from forecast.data.sources.tables import scan
from forecast.errors import ConfigError, DataError

NAN = math.nan
DAYS = [datetime(2013, 1, 1) + timedelta(days=i) for i in range(60)]
LENIENT: dict[str, Any] = {"max_reject_share": 1.0}


def daily(series: Mapping[str, Sequence[float | None]], **columns: Sequence[Any]) -> pl.DataFrame:
    rows = [(name, DAYS[i], value) for name, values in series.items() for i, value in enumerate(values)]
    schema = {"series_id": pl.String, "timestamp": pl.Datetime("us"), "target": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row").with_columns(pl.Series(k, v) for k, v in columns.items())


def load(
    frame: pl.DataFrame | pl.LazyFrame,
    *,
    horizon: int = 2,
    categories: dict[str, tuple[str, ...]] | None = None,
    **data: Any,
) -> Loaded:
    loaded = load_panel(frame.lazy(), DataConfig.model_validate({"freq": "1d"} | data), horizon, categories)
    counts = loaded.counts
    assert counts.rows_in == counts.rows_kept + counts.rows_rejected + counts.rows_future + counts.rows_after_until
    assert counts.rows_in == frame.lazy().select(pl.len()).collect().item()
    assert counts.series_in == counts.series_kept + counts.series_rejected
    assert counts.series_kept == loaded.panel.n_series
    return loaded


def rejected(loaded: Loaded) -> list[tuple[Any, ...]]:
    return loaded.rejects.rows()


def steps(loaded: Loaded) -> dict[str, list[float]]:
    panel = loaded.panel
    return {
        str(name): panel.target[panel.offsets[i] : panel.offsets[i + 1]].tolist()
        for i, name in enumerate(panel.series_id)
    }


def same(left: Sequence[float], right: Sequence[float]) -> bool:
    return np.array_equal(np.array(left, dtype=np.float32), np.array(right, dtype=np.float32), equal_nan=True)


# --- the panel


def test_series_of_any_length_lie_end_to_end() -> None:
    loaded = load(daily({"b": [1, 2, 3], "a": [4], "c": [0, 0]}))
    panel = loaded.panel
    assert panel.series_id.tolist() == ["a", "b", "c"]
    assert panel.offsets.tolist() == [0, 1, 4, 6]
    assert panel.target.tolist() == [4, 1, 2, 3, 0, 0]
    assert panel.target.dtype == np.float32
    assert panel.grid.timestamps(panel.start).to_list() == [DAYS[0]] * 3
    assert (loaded.counts.rows_kept, loaded.counts.steps_filled) == (6, 0)
    assert loaded.rejects.is_empty()
    assert panel.past.shape == (0, 6)
    assert panel.known.shape == (0, 6 + 3 * 2)
    assert panel.static_categories.shape == panel.static_numbers.shape == (3, 0)


def test_a_series_runs_from_its_first_to_its_last_observed_target() -> None:
    frame = daily({"a": [None, NAN, 1, None, 3, None, None], "b": [5]})
    loaded = load(frame.filter(~((pl.col("series_id") == "a") & (pl.col("timestamp") == DAYS[3]))))
    assert same(steps(loaded)["a"], [1, NAN, 3])
    assert loaded.panel.grid.timestamps(loaded.panel.start).to_list() == [DAYS[2], DAYS[0]]
    counts = loaded.counts
    assert (counts.rows_in, counts.rows_kept, counts.rows_future, counts.steps_filled) == (7, 5, 2, 1)


def test_the_calendar_spans_all_series_and_the_horizon() -> None:
    frame = pl.concat([daily({"a": [1, 2]}), daily({"b": [1] * 9})[5:]])
    panel = load(frame).panel
    assert panel.calendar.shape == (11, 9 + 2)
    assert panel.calendar_start == panel.start.min()
    assert load(frame, calendar=False).panel.calendar.shape == (0, 11)


tables = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 12),
        st.sampled_from([0.0, 1.0, 2.5, None, NAN, math.inf, 1e30]),
        st.sampled_from([0.0, 3.0, None, NAN]),
        st.sampled_from([0, 0, 0, 0, 0, 30]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150)
@given(rows=tables, seed=st.integers(0, 10), chunk=st.integers(1, 9), until=st.sampled_from([None, DAYS[3], DAYS[8]]))
def test_order_and_chunks_of_rows_do_not_matter_and_no_row_is_lost(
    rows: list[tuple[str, int, float | None, float | None, int]], seed: int, chunk: int, until: datetime | None
) -> None:
    moments = [DAYS[day] + timedelta(minutes=minutes) for _, day, _, _, minutes in rows]
    frame = pl.DataFrame(
        {
            "series_id": [row[0] for row in rows],
            "timestamp": moments,
            "target": pl.Series([row[2] for row in rows], dtype=pl.Float64),
            "price": pl.Series([row[3] for row in rows], dtype=pl.Float64),
            "size": [ord(row[0]) for row in rows],
        }
    )
    shuffled = frame.sample(fraction=1, shuffle=True, seed=seed)
    pieces = pl.concat([shuffled[i : i + chunk] for i in range(0, len(shuffled), chunk)], rechunk=False)
    settings = LENIENT | {"known_covariates": ["price"], "static_covariates": ["size"], "until": until}
    outcomes: list[tuple[Any, ...]] = []
    for table in (frame, shuffled, pieces, frame.sort("series_id", "timestamp")):
        try:
            loaded = load(table, **settings)
        except DataError as error:
            outcomes.append((str(error), None, None))
            continue
        outcomes.append((loaded.panel.digest(), loaded.counts, loaded.rejects.rows()))
        row_rejects = loaded.rejects.filter(pl.col("timestamp").is_not_null()).height
        assert loaded.counts.rows_rejected >= row_rejects
        observed = np.count_nonzero(~np.isnan(loaded.panel.target))
        assert loaded.counts.steps_filled == len(loaded.panel.target) - observed
        assert observed <= loaded.counts.rows_kept
    assert all(str(outcome) == str(outcomes[0]) for outcome in outcomes)


def test_the_digest_tells_panels_apart() -> None:
    digests = {
        load(daily({"a": [1, 2, 3]})).panel.digest(),
        load(daily({"b": [1, 2, 3]})).panel.digest(),
        load(daily({"a": [1, 2, 4]})).panel.digest(),
        load(daily({"a": [1, None, 3]})).panel.digest(),
        load(daily({"a": [1, 2, 3]}).with_columns(pl.col("timestamp").dt.offset_by("1d"))).panel.digest(),
    }
    assert len(digests) == 5


# --- covariates


def test_past_covariates_end_with_the_target_and_known_ones_reach_over_the_horizon() -> None:
    frame = daily({"a": [None, 1, None, 3, None, None, None], "b": [7, None]}, wind=range(9), price=range(10, 19))
    panel = load(frame, past_covariates=["wind"], known_covariates=["price"]).panel
    assert panel.past.tolist() == [[1, 2, 3, 7]]
    assert same(panel.known[0], [11, 12, 13, 14, 15, 17, 18, NAN])
    assert panel.offsets.tolist() == [0, 3, 4]


def test_flags_and_whole_numbers_are_numbers() -> None:
    frame = daily({"a": [1, 2]}, snap=[True, None], price=[1, 2]).with_columns(pl.col("target").cast(pl.Decimal(9, 2)))
    panel = load(frame, known_covariates=["snap", "price"]).panel
    assert same(panel.known[0], [1, NAN, NAN, NAN])
    assert panel.target.tolist() == [1, 2]


def test_a_covariate_may_be_called_like_one_of_our_columns() -> None:
    frame = daily({"a": [1, 2]}, value=[8, 9]).rename({"target": "sales", "value": "target"})
    panel = load(frame, columns={"target": "sales"}, past_covariates=["target"]).panel
    assert (panel.target.tolist(), panel.past.tolist()) == ([1, 2], [[8, 9]])


def test_text_and_flags_are_categories_and_numbers_are_numbers() -> None:
    series = {"a": [1.0, 1.0], "b": [1.0, 1.0], "c": [1.0, 1.0], "d": [None, None]}
    columns = {
        "city": ["Ulm", "Ulm", None, "Bonn", None, None, "Kiel", "Kiel"],
        "size": [2.0, None, 3.0, 3.0, NAN, NAN, 9.0, 9.0],
        "open": [True, True, False, False, None, None, True, True],
    }
    frame = daily(series, **columns).with_columns(pl.col("city").cast(pl.Categorical))
    names = ["size", "city", "open"]
    loaded = load(frame, static_covariates=names, **LENIENT)
    # Kiel belongs to a series that was never observed.
    assert loaded.categories == {"city": ("Bonn", "Ulm"), "open": ("false", "true")}
    assert loaded.panel.static_categories.tolist() == [[2, 2], [1, 1], [0, 0]]
    assert same(loaded.panel.static_numbers[:, 0], [2, 3, NAN])

    trained = {"city": ("Essen", "Ulm"), "open": ("true",)}
    later = load(frame, static_covariates=names, categories=trained, **LENIENT)
    assert later.categories == trained
    assert later.panel.static_categories.tolist() == [[2, 1], [0, 0], [0, 0]]


def test_a_static_covariate_keeps_the_kind_it_was_trained_as() -> None:
    frame = daily({"a": [1.0], "b": [2.0]}, store=[7, 8])
    assert load(frame, static_covariates=["store"]).panel.static_numbers.tolist() == [[7], [8]]
    loaded = load(frame, static_covariates=["store"], categories={"store": ("5", "8")})
    assert loaded.panel.static_categories.tolist() == [[0], [2]]
    text = frame.with_columns(pl.col("store").cast(pl.String))
    assert load(text, static_covariates=["store"], categories={}).panel.static_numbers.tolist() == [[7], [8]]
    text = frame.with_columns(store=pl.lit("x"))
    with pytest.raises(DataError, match=r"column 'store' \(data.static_covariates\) must hold numbers"):
        load(text, static_covariates=["store"], categories={})


def test_a_static_covariate_with_two_values_is_an_error() -> None:
    frame = daily({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, city=["Ulm", "Bonn", "Ulm", None, None, "Kiel"])
    with pytest.raises(
        DataError, match=r"'city' has more than one value in 1 of 3 series: a \(Bonn, Ulm\); make it constant"
    ):
        load(frame, static_covariates=["city"])


def test_a_static_covariate_that_is_not_finite_is_an_error() -> None:
    frame = daily({"a": [1, 2], "b": [3]}, size=[math.inf, math.inf, 1.0])
    with pytest.raises(DataError, match="static covariate 'size' is not finite in 1 series: a"):
        load(frame, static_covariates=["size"])


# --- time


def test_settings_that_were_inferred_are_returned() -> None:
    frame = daily({"a": range(30)})
    data = load_panel(frame.lazy(), DataConfig(), 2).data
    assert (data.freq, data.season_length, data.time_zone) == ("1d", 7, None)
    aware = frame.with_columns(pl.col("timestamp").dt.replace_time_zone("Europe/Paris"))
    data = load_panel(aware.lazy(), DataConfig(season_length=3), 2).data
    assert (data.freq, data.season_length, data.time_zone) == ("1d", 3, "Europe/Paris")


def test_the_frequency_is_that_of_the_longest_series_up_to_until() -> None:
    days = daily({f"{i:03}": [1.0] for i in range(200)} | {"z": [1.0] * 20})
    late = pl.DataFrame(
        {"series_id": "z", "timestamp": [DAYS[40] + timedelta(hours=i) for i in range(400)], "target": 1.0}
    )
    frame = pl.concat([days, late]).lazy()
    assert load_panel(frame, DataConfig(until=DAYS[30], **LENIENT), 2).data.freq == "1d"
    assert load_panel(frame, DataConfig(), 2).data.freq == "1h"


@pytest.mark.parametrize("dtype", [pl.Date, pl.Datetime("ms"), pl.Datetime("us"), pl.Datetime("ns")])
def test_any_unit_of_time_gives_the_same_panel(dtype: Any) -> None:
    frame = daily({"a": [1, 2, 3]})
    assert load(frame.with_columns(pl.col("timestamp").cast(dtype))).panel.digest() == load(frame).panel.digest()


def test_utc_and_local_timestamps_give_the_same_panel() -> None:
    days = pl.datetime_range(date(2013, 3, 29), date(2013, 4, 3), "1d", time_zone="Europe/Paris", eager=True)
    frame = pl.DataFrame({"series_id": "a", "timestamp": days, "target": [1.0, 2, 3, 4, 5, 6]})
    utc = frame.with_columns(pl.col("timestamp").dt.convert_time_zone("UTC"))
    naive = frame.with_columns(pl.col("timestamp").dt.replace_time_zone(None))
    loaded = [load(table, time_zone="Europe/Paris") for table in (frame, utc, naive)]
    assert {one.panel.digest() for one in loaded} == {loaded[0].panel.digest()}
    assert loaded[0].panel.target.tolist() == [1, 2, 3, 4, 5, 6]
    assert loaded[0].panel.grid.timestamps(loaded[0].panel.start)[0] == days[0]
    # In UTC the days start at 23:00, then at 22:00.
    with pytest.raises(DataError, match=r"(?s)off-grid timestamp: 3, .*data\.time_zone set the grid"):
        load(utc)


def test_hours_across_a_clock_change_leave_no_gap() -> None:
    hours = pl.datetime_range(
        datetime(2013, 10, 26), datetime(2013, 10, 29), "1h", time_zone="Europe/Paris", eager=True
    )
    frame = pl.DataFrame({"series_id": "a", "timestamp": hours, "target": 1.0})
    assert len(hours) == 74
    for table in (frame, frame.with_columns(pl.col("timestamp").dt.convert_time_zone("UTC"))):
        loaded = load(table, freq=None, time_zone="Europe/Paris")
        assert (loaded.data.freq, len(loaded.panel.target), loaded.counts.steps_filled) == ("1h", 74, 0)


def test_naive_local_hours_that_the_clock_skips_or_repeats_are_rejected() -> None:
    spring = [datetime(2013, 3, 31, hour) for hour in (1, 2, 3)]
    autumn = [datetime(2013, 3, 31, 4), datetime(2013, 10, 27, 2), datetime(2013, 10, 27, 2)]
    frame = pl.DataFrame({"series_id": "a", "timestamp": spring + autumn, "target": [1.0, 2, 3, 4, 5, 6]})
    loaded = load(frame, freq="1h", time_zone="Europe/Paris", **LENIENT)
    assert [row[2:] for row in rejected(loaded)] == [
        ("timestamp skipped by the clock of Europe/Paris", 2.0),
        ("duplicate key with different values", 5.0),
        ("duplicate key with different values", 6.0),
    ]
    assert loaded.panel.target.tolist() == [1, 3, 4]


def test_month_ends_weeks_business_days_and_far_years() -> None:
    ranges = {
        "1mo": pl.date_range(date(2012, 1, 1), date(2014, 1, 1), "1mo", eager=True).dt.month_end(),
        "1w": pl.date_range(date(2012, 1, 4), date(2014, 1, 1), "1w", eager=True),
        "1bd": pl.date_range(date(2012, 1, 2), date(2012, 3, 1), "1d", eager=True).filter(
            pl.date_range(date(2012, 1, 2), date(2012, 3, 1), "1d", eager=True).dt.weekday() < 6
        ),
        "1y": pl.date_range(date(1750, 1, 1), date(2584, 1, 1), "1y", eager=True),
    }
    for freq, days in ranges.items():
        frame = pl.DataFrame({"series_id": "a", "timestamp": days, "target": np.arange(len(days))})
        loaded = load(frame.sample(fraction=1, shuffle=True, seed=1), freq=None)
        assert loaded.data.freq == freq
        assert loaded.panel.target.tolist() == list(range(len(days)))
        last = loaded.panel.grid.timestamps(loaded.panel.start + len(days) - 1)
        assert last.dt.date().to_list() == [days[-1]]


def test_iso_text_from_csv_is_read(tmp_path: Path) -> None:
    def csv(*timestamps: str) -> pl.LazyFrame:
        rows = "\n".join(f"007,{timestamp},{i}" for i, timestamp in enumerate(timestamps))
        (tmp_path / "a.csv").write_text(f"series_id,timestamp,target\n{rows}\n")
        return scan(tmp_path / "a.csv")

    plain = load(csv("2013-01-01", "2013-01-02"))
    assert plain.panel.series_id.tolist() == ["007"]
    assert plain.panel.grid.timestamps(plain.panel.start).to_list() == [DAYS[0]]
    for texts in (
        ["2013-01-01T00:00:00", "2013-01-02T00:00:00.000"],
        ["2013-01-01 00:00", "2013-01-02 00:00:00"],
    ):
        assert load(csv(*texts)).panel.digest() == plain.panel.digest()
    assert load(csv("2013-01", "2013-02"), freq="1mo").panel.target.tolist() == [0, 1]

    aware = load(csv("2013-01-01T00:00:00Z", "2013-01-02T01:00:00+01:00", "2013-01-02 19:00:00.0-0500"))
    assert aware.data.time_zone == "UTC"
    assert aware.panel.target.tolist() == [0, 1, 2]
    assert aware.panel.grid.timestamps(aware.panel.start).to_list() == [datetime(2013, 1, 1, tzinfo=UTC)]


def test_a_text_that_is_no_time_is_rejected_and_a_column_of_them_is_an_error() -> None:
    frame = daily({"a": [1, 2, 3, 4]}).with_columns(timestamp=pl.Series(["2013-01-01", "2013-01-02", "soon", None]))
    assert rejected(load(frame, **LENIENT)) == [
        ("a", None, "null timestamp", 4.0),
        ("a", None, "timestamp is not ISO 8601", 3.0),
    ]
    with pytest.raises(
        DataError, match=r"text and not ISO 8601 \(e\.g\. '31/01/2013'\); set .*timestamp_format='%d/%m/%Y'"
    ):
        load(frame.with_columns(timestamp=pl.lit("31/01/2013")))


def test_pandas_and_arrow_tables_give_the_same_panel() -> None:
    frame = daily({"a": [1, None, 3], "b": [4, 5, 6]}, price=[1, 2, 3, 4, 5, None])
    data = DataConfig(freq="1d", known_covariates=("price",))
    digests = {
        load_panel(to_lazy(table), data, 2).panel.digest() for table in (frame, frame.to_pandas(), frame.to_arrow())
    }
    assert len(digests) == 1


def test_whole_number_ids_are_text_in_the_panel() -> None:
    frame = daily({"a": [1, 2]}).with_columns(series_id=pl.lit(12, dtype=pl.Int32))
    assert load(frame).panel.series_id.tolist() == ["12"]
    assert load(daily({"a": [1]}).with_columns(pl.col("series_id").cast(pl.Categorical))).panel.series_id.tolist() == [
        "a"
    ]


# --- until


def test_until_hides_targets_and_past_covariates_but_not_known_ones() -> None:
    frame = daily({"a": [1, 2, 3, 4, 5, 6], "b": [7, None, 8, 9, 9, 9]}, wind=range(12), price=range(10, 22))
    covariates = {"past_covariates": ["wind"], "known_covariates": ["price"]}
    loaded = load(frame, until=DAYS[1], **covariates)
    assert steps(loaded) == {"a": [1, 2], "b": [7]}
    assert loaded.panel.past.tolist() == [[0, 1, 6]]
    assert loaded.panel.known.tolist() == [[10, 11, 12, 13, 16, 17, 18]]
    counts = loaded.counts
    assert (counts.rows_kept, counts.rows_future, counts.rows_after_until) == (3, 1, 8)

    # What is hidden can't be found bad either.
    later = pl.when(pl.col("timestamp") > DAYS[1])
    bad = frame.with_columns(later.then(math.inf).otherwise(name).alias(name) for name in ("target", "wind"))
    assert load(bad, until=DAYS[1], on_error="fail", **covariates).panel.digest() == loaded.panel.digest()

    hidden = pl.when(pl.col("timestamp") <= DAYS[1])
    blind = frame.with_columns(hidden.then(name).alias(name) for name in ("target", "wind"))
    assert load(blind, **covariates).panel.digest() == loaded.panel.digest()


@settings(max_examples=60)
@given(rows=tables, day=st.integers(0, 12))
def test_the_panel_up_to_until_does_not_depend_on_later_rows(
    rows: list[tuple[str, int, float | None, float | None, int]], day: int
) -> None:
    frame = pl.DataFrame(
        {
            "series_id": [row[0] for row in rows],
            "timestamp": [DAYS[row[1]] + timedelta(minutes=row[4]) for row in rows],
            "target": pl.Series([row[2] for row in rows], dtype=pl.Float64),
        }
    )
    before = frame.filter(pl.col("timestamp") <= DAYS[day])
    assert digest(frame, until=DAYS[day]) == digest(before)


def digest(frame: pl.DataFrame, **data: Any) -> str | None:
    try:
        return load(frame, **data, **LENIENT).panel.digest()
    except DataError as error:
        # That no row or no series is left is said in several ways.
        return None if str(error).startswith(("no row", "the table has no rows")) or "no series" in str(error) else "?"


def test_until_is_local_unless_it_says_otherwise() -> None:
    hours = pl.datetime_range(
        datetime(2013, 7, 1), datetime(2013, 7, 2), "1h", time_zone="America/New_York", eager=True
    )
    frame = pl.DataFrame({"series_id": "a", "timestamp": hours.dt.convert_time_zone("UTC"), "target": 1.0})
    for until in ("2013-07-01T04:30", "2013-07-01T08:30Z", "2013-07-01T10:00+02:00"):
        loaded = load(frame, freq="1h", time_zone="America/New_York", until=until)
        assert len(loaded.panel.target) == 5
    with pytest.raises(ConfigError, match="has a time zone and the panel has none"):
        load(daily({"a": [1, 2]}), until="2013-01-01T00:00Z")


def test_a_series_that_begins_after_until_is_a_reject_but_no_failure() -> None:
    frame = pl.concat([daily({"a": [1, 2, 3]}), daily({"b": [1, 2, 3]})[2:]])
    loaded = load(frame, until=DAYS[1], on_error="fail")
    assert rejected(loaded) == [("b", None, "no observed target", None)]
    assert (loaded.counts.rows_after_until, loaded.counts.rows_rejected) == (2, 0)
    with pytest.raises(DataError, match=r"no row has both a series_id and a timestamp up to data\.until=2012-12-31"):
        load(frame, until=date(2012, 12, 31))


# --- rejects


def with_row(
    frame: pl.DataFrame, series_id: str | None, timestamp: datetime | None, target: float | None, **more: float
) -> pl.DataFrame:
    row = pl.DataFrame(
        {"series_id": [series_id], "timestamp": [timestamp], "target": [target], **{k: [v] for k, v in more.items()}}
    )
    return pl.concat([frame, row.cast(dict(frame.schema))])


@pytest.mark.parametrize(
    ("series_id", "timestamp", "target", "reason"),
    [
        (None, DAYS[3], 7.0, "null series_id"),
        ("a", None, 7.0, "null timestamp"),
        ("a", DAYS[3] + timedelta(hours=1), 7.0, "off-grid timestamp"),
        ("a", DAYS[3], math.inf, "target not finite"),
        ("a", DAYS[3], -math.inf, "target not finite"),
        ("a", DAYS[3], -2e18, "target beyond 1e+18"),
        ("a", DAYS[1], 2.0, "duplicate key"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(
    series_id: str | None, timestamp: datetime | None, target: float, reason: str
) -> None:
    good = daily({"a": [1, 2, 3]})
    frame = with_row(good, series_id, timestamp, target)
    loaded = load(frame, **LENIENT)
    assert rejected(loaded) == [(series_id, timestamp, reason, target)]
    assert (loaded.counts.rows_kept, loaded.counts.rows_rejected) == (3, 1)
    assert loaded.panel.digest() == load(good).panel.digest()
    with pytest.raises(DataError, match=r"data\.on_error=fail allows none"):
        load(frame, on_error="fail", **LENIENT)


def test_rows_that_contradict_each_other_are_all_rejected() -> None:
    frame = with_row(daily({"a": [1, 2, 3]}, price=[1, 1, 1]), "a", DAYS[2], 9.0, price=1)
    loaded = load(frame, **LENIENT)
    reason = "duplicate key with different values"
    assert rejected(loaded) == [("a", DAYS[2], reason, 3.0), ("a", DAYS[2], reason, 9.0)]
    assert steps(loaded) == {"a": [1, 2]}
    price = with_row(daily({"a": [1, 2, 3]}, price=[1, 1, 1]), "a", DAYS[1], 2.0, price=8)
    assert load(price, known_covariates=["price"], **LENIENT).rejects.height == 2
    assert load(price, **LENIENT).rejects["reason"].to_list() == ["duplicate key"]
    twice = pl.concat([frame, frame[:1], frame[:1]])
    assert sorted(load(twice, **LENIENT).rejects["reason"]) == ["duplicate key"] * 2 + [reason] * 2


def test_a_covariate_that_is_not_finite_is_rejected() -> None:
    frame = daily({"a": [1, 2, 3, 4]}, price=[1.0, math.inf, 1.0, 1.0], wind=[1.0, 1.0, -3e20, NAN])
    loaded = load(frame, known_covariates=["price"], past_covariates=["wind"], **LENIENT)
    assert rejected(loaded) == [
        ("a", DAYS[1], "price not finite", math.inf),
        ("a", DAYS[2], "wind beyond 1e+18", pytest.approx(-3e20)),
    ]


def test_a_series_without_any_target_is_rejected_once() -> None:
    loaded = load(daily({"a": [1, 2], "b": [None, NAN], "c": [math.inf]}), **LENIENT)
    assert rejected(loaded) == [
        ("b", None, "no observed target", None),
        ("c", None, "no observed target", None),
        ("c", DAYS[0], "target not finite", math.inf),
    ]
    assert (loaded.counts.rows_rejected, loaded.counts.series_rejected) == (3, 2)


@pytest.mark.parametrize("values", [[0, 0, 0], [5, 5, 5], [1], [1e18, -1e18, 0], [1e-30, 2e-30, 0]])
def test_series_that_are_odd_but_sound_are_kept(values: list[float]) -> None:
    loaded = load(daily({"a": values}), on_error="fail")
    assert same(steps(loaded)["a"], values)


def test_rejects_have_the_time_zone_of_the_panel() -> None:
    assert load(daily({"a": [1]})).rejects.schema == {
        "series_id": pl.String, "timestamp": pl.Datetime("us"), "reason": pl.String, "value": pl.Float64
    }  # fmt: skip
    hours = pl.datetime_range(datetime(2013, 7, 1), datetime(2013, 7, 2), "1h", time_zone="UTC", eager=True)
    frame = pl.DataFrame({"series_id": "a", "timestamp": hours, "target": [math.inf] + [1.0] * 24})
    rejects = load(frame, freq="1h", time_zone="Europe/Paris").rejects
    assert rejects.schema["timestamp"] == pl.Datetime("us", "Europe/Paris")
    assert rejects["timestamp"].to_list() == [datetime(2013, 7, 1, tzinfo=UTC)]


# --- errors


def test_too_many_rejects_stop_the_job_with_counts_and_offenders() -> None:
    frame = daily({f"s{i}": [1, math.inf, None] for i in range(8)} | {"t": [None]})
    with pytest.raises(DataError) as found:
        load(frame)
    assert str(found.value) == (
        "9 of 25 rows (36.0%) and 1 of 9 series were rejected, more than data.max_reject_share=0.05; "
        "mend the table or raise it:\n"
        "  target not finite: 8, e.g. s0 at 2013-01-02 00:00:00 (inf), s1 at 2013-01-02 00:00:00 (inf), "
        "s2 at 2013-01-02 00:00:00 (inf), s3 at 2013-01-02 00:00:00 (inf), s4 at 2013-01-02 00:00:00 (inf)\n"
        "  no observed target: 1, e.g. t"
    )
    assert load(frame, max_reject_share=0.36).counts.rows_rejected == 9


def test_a_table_without_rows_or_without_targets_is_an_error() -> None:
    with pytest.raises(DataError, match="the table has no rows"):
        load(daily({}))
    with pytest.raises(DataError, match="no series is left to forecast"):
        load(daily({"a": [None, None]}), **LENIENT)
    with pytest.raises(DataError, match="no row has both a series_id and a timestamp"):
        load(daily({"a": [1]}).with_columns(series_id=pl.lit(None, dtype=pl.String)), **LENIENT)


def test_missing_columns_are_all_named_with_close_matches_and_keys() -> None:
    frame = daily({"a": [1]}, wind_speed=[1]).rename({"target": "Sales"})
    with pytest.raises(DataError) as found:
        load(frame, columns={"target": "sales", "series_id": "store"}, past_covariates=["windspeed"])
    assert str(found.value) == (
        "no column 'store' (data.columns.series_id); set data.columns.series_id\n"
        "no column 'sales' (data.columns.target); did you mean 'Sales'?\n"
        "no column 'windspeed' (data.past_covariates); did you mean 'wind_speed'?\n"
        "The table has the columns series_id, timestamp, Sales, wind_speed"
    )


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "target",
            ["1", "x"],
            r"column 'target' .* must hold numbers, but is String \(1 of 2 rows are no number, e.g. 'x'; data.null",
        ),
        ("series_id", [1.0, 2.0], r"\(data.columns.series_id\) must hold text or whole numbers, but is Float64"),
        (
            "timestamp",
            [12, 13],
            r"\(data.columns.timestamp\) holds 2 numbers from 12 to 13, which are neither years nor dates",
        ),
        ("price", ["1", "2"], r"\(data.known_covariates\) is String, but most of its 2 values are numbers"),
        ("price", [[1], [2]], r"\(data.known_covariates\) must hold numbers.*, but is List\(Int64\)"),
        ("area", [[1], [2]], r"\(data.static_covariates\) must hold .*numbers.*, but is List\(Int64\)"),
    ],
)
def test_a_wrong_type_is_named_with_its_key(column: str, values: list[Any], message: str) -> None:
    frame = daily({"a": [1, 2]}, price=[1, 2], area=[1, 1]).with_columns(pl.Series(column, values))
    with pytest.raises(DataError, match=message):
        load(frame, known_covariates=["price"], static_covariates=["area"])


def test_one_date_far_off_does_not_fill_the_memory() -> None:
    hours = [datetime(2013, 1, 1) + timedelta(hours=i) for i in range(50)]
    frame = pl.DataFrame({"series_id": "a", "timestamp": [*hours, datetime(9999, 12, 31)], "target": 1.0})
    assert load(frame, freq="1h").rejects["timestamp"].to_list() == [datetime(9999, 12, 31)]
    with pytest.raises(
        DataError, match=r"a runs from 2013-01-01 00:00:00 to 9999-12-31 00:00:00; look for dates far off"
    ):
        load(frame, freq="1h", end_share=0)
    apart = frame.with_columns(
        series_id=pl.when(pl.col("timestamp") == datetime(9999, 12, 31)).then(pl.lit("b")).otherwise("series_id")
    )
    with pytest.raises(DataError, match="the panel runs from 2013-01-01 00:00:00 to 9999-12-31 02:00:00"):
        load(apart, freq="1h")


def test_unknown_settings_are_refused_before_the_table_is_read() -> None:
    unread = pl.LazyFrame({"a": [1]}).map_batches(lambda _: pytest.fail("was read"))
    with pytest.raises(ConfigError, match=r"data.freq: unknown frequency 'H', did you mean 1h\?"):
        load_panel(unread, DataConfig(freq="H"), 2)
    with pytest.raises(
        ConfigError, match=r"data.time_zone: unknown time zone 'Europe/Pari'; did you mean Europe/Paris\?"
    ):
        load_panel(unread, DataConfig(time_zone="Europe/Pari"), 2)


def test_a_frequency_that_can_not_be_told_asks_for_it() -> None:
    with pytest.raises(DataError, match=r"no series has two rows; give data\.freq"):
        load(daily({"a": [1], "b": [2]}), freq=None)
