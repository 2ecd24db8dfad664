"""What users get wrong: each ends with its exit code and a message to act on, or as a reject beside forecasts."""

import time
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, HORIZON, NAME, SERIES, START, STEPS, TRAIN, Store, forecast, panel, refuse
from polars.testing import assert_frame_equal

MODEL = f"registry.name={NAME}"
ODD = "s04"
"""The series that the bad rows belong to."""

is_odd = pl.col("series_id") == ODD
row = pl.int_range(pl.len())


def odd_target(values: pl.Expr | float | None) -> pl.DataFrame:
    """Return the panel with other values in one series."""
    expression = values if isinstance(values, pl.Expr) else pl.lit(values)
    return panel().with_columns(target=pl.when(is_odd).then(expression).otherwise("target"))


# Bad rows and series: the table, the rejects (reason: count), and how many series are forecast.

FIRST_ODD = SERIES.index(ODD) * STEPS
AT_FIRST_ODD = pl.when(row == FIRST_ODD)

REJECTED = {
    "null series_id": (
        panel().with_columns(series_id=AT_FIRST_ODD.then(None).otherwise("series_id")),
        {"null series_id": 1},
        20,
    ),
    "null timestamp": (
        panel().with_columns(timestamp=AT_FIRST_ODD.then(None).otherwise("timestamp")),
        {"null timestamp": 1},
        20,
    ),
    "rows given twice": (pl.concat([panel(), panel()[FIRST_ODD : FIRST_ODD + 3]]), {"duplicate key": 3}, 20),
    "keys with two values": (
        pl.concat([panel(), panel()[FIRST_ODD : FIRST_ODD + 3].with_columns(target=99.0)]),
        {"duplicate key with different values": 6},
        20,
    ),
    "timestamps off the grid": (
        panel().with_columns(
            timestamp=AT_FIRST_ODD.then(pl.col("timestamp").dt.offset_by("7m")).otherwise("timestamp")
        ),
        {"off-grid timestamp": 1},
        20,
    ),
    "all-missing series": (odd_target(None), {"no observed target": 1}, 19),
    "value too large": (
        panel().with_columns(target=AT_FIRST_ODD.then(1e30).otherwise("target")),
        {"target beyond 1e+18": 1},
        20,
    ),
    "infinite value": (
        panel().with_columns(target=AT_FIRST_ODD.then(-np.inf).otherwise("target")),
        {"target not finite": 1},
        20,
    ),
}


@pytest.mark.parametrize("case", REJECTED)
def test_bad_rows_are_rejected_with_a_reason_and_the_rest_is_forecast(
    promoted: Store, champion_forecasts: pl.DataFrame, case: str
) -> None:
    table, reasons, series = REJECTED[case]
    done = promoted.score(promoted.write(table), "data.max_reject_share=0.1")
    frame, rejects = promoted.forecasts(), promoted.rejects()
    assert dict(rejects["reason"].value_counts().iter_rows()) == reasons
    assert rejects["series_id"].drop_nulls().is_in([ODD]).all()
    assert frame["series_id"].n_unique() == series
    assert f"20 series = {series} forecast + {20 - series} rejected" in done.lines[-1]
    assert f"{rejects.height} rejects" in done.lines[-1]
    assert np.isfinite(frame.select("mean", "^q.*$").to_numpy()).all()

    keep = pl.col("series_id") != ODD
    assert_frame_equal(frame.filter(keep), champion_forecasts.filter(keep))


ACCEPTED = {
    "all zero": (odd_target(0.0), 0.0, 1e-6),
    "constant": (odd_target(7.0), 7.0, 1e-3),
    "constant and huge": (odd_target(1e17), 1e17, 1e13),
    "constant and tiny": (odd_target(1e-12), 1e-12, 1e-13),
}


@pytest.mark.parametrize(("moment", "step"), [(END, STEPS - 1), (START, 0)])
def test_one_observation_is_forecast_around_its_value_and_not_with_certainty(
    promoted: Store, moment: datetime, step: int
) -> None:
    expected = float(panel()["target"][FIRST_ODD + step])
    promoted.score(promoted.write(panel().filter(~is_odd | (pl.col("timestamp") == moment))), "score.max_age=none")
    frame = promoted.forecasts().filter(is_odd)
    assert frame.height == HORIZON
    assert promoted.rejects().is_empty()
    assert ((frame["q10"] < expected) & (frame["q90"] > expected)).all()
    usual = promoted.forecasts().filter(~is_odd).select((pl.col("q90") - pl.col("q10")).mean()).item()
    width = (frame["q90"] - frame["q10"]).mean()
    assert 0.5 * usual < width < 10 * usual


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_series_with_nothing_to_learn_from_is_forecast_as_what_it_was(promoted: Store, case: str) -> None:
    table, expected, tolerance = ACCEPTED[case]
    promoted.score(promoted.write(table))
    frame = promoted.forecasts().filter(is_odd)
    assert frame.height == HORIZON
    assert promoted.rejects().is_empty()
    values = frame.select("q10", "q50", "mean", "q90").to_numpy()
    assert np.abs(values - expected).max() <= tolerance, values


LADDER = {"seasonal_naive": 60, "last_value": 100}
"""Hours by which a series ends early: after the context of 48, and more than four days after it."""


def test_the_source_says_what_a_series_that_has_ended_was_forecast_by(promoted: Store) -> None:
    promoted.score()
    whole = promoted.forecasts().filter(pl.col("cutoff") == END, source="fine_tuned")
    assert not whole.is_empty()
    tuned = whole["series_id"].min()
    for source, hours in LADDER.items():
        ended = panel().filter((pl.col("series_id") != tuned) | (pl.col("timestamp") <= END - timedelta(hours=hours)))
        promoted.score(promoted.write(ended), "score.max_age=none", output=source)
        rows = promoted.forecasts(source).filter(series_id=tuned)
        assert set(rows["source"]) == {source}
        assert (rows["cutoff"] == END).all()
        if source == "last_value":
            assert rows["q50"].n_unique() == 1


@pytest.mark.usefixtures("store")
def test_series_with_nothing_to_learn_from_do_no_harm_to_training(tmp_path: Path) -> None:
    number = pl.col("series_id").str.slice(1).cast(pl.Int64)
    target = pl.when(number == 0).then(0.0).when(number == 1).then(5.0).when(number == 2).then(None).otherwise("target")
    table = panel().with_columns(target=target).filter((number != 3) | (pl.col("timestamp") == START))
    table.write_parquet(tmp_path / "table.parquet")
    data = ("data.path=table.parquet", "data.max_reject_share=0.1")
    for verb, settings in (("train", TRAIN), ("finetune", FINETUNE), ("backtest", BACKTEST)):
        done = forecast(verb, MODEL, *data, *settings)
        assert done.code == 0, done.err
        assert "nan" not in done.out.lower()
        assert " 1 rejects" in done.lines[-1]
    done = forecast("score", MODEL, "registry.alias=challenger", *data, "output.path=out")
    assert "20 series = 18 forecast + 2 rejected (1 ended)" in done.out


def test_unsorted_input_gives_the_same_bytes(promoted: Store) -> None:
    promoted.score(promoted.write(panel().sample(fraction=1.0, shuffle=True, seed=1)), output="unsorted")
    promoted.score(output="sorted")
    one, other = (next((promoted.folder / name).glob("forecasts/*/*")).read_bytes() for name in ("unsorted", "sorted"))
    assert one == other


def test_a_series_that_training_did_not_know_is_forecast_by_the_base(promoted: Store) -> None:
    promoted.score(promoted.write(panel().with_columns(pl.col("series_id").replace({ODD: "new"}))))
    sources = dict(promoted.forecasts().select("series_id", "source").iter_rows())
    assert sources["new"] == "pretrained"
    assert len(sources) == len(SERIES)


# Tables that can't be used at all: exit code 3.

UNUSABLE = {
    "missing column": (
        panel().rename({"target": "Target_kW"}),
        ["no column 'target' (data.columns.target of", "rename 'Target_kW'"],
    ),
    "several missing columns": (
        panel().select("timestamp"),
        ["no column 'series_id'", "no column 'target'", "rename the column", "has the columns timestamp"],
    ),
    "text target": (
        panel().with_columns(target=AT_FIRST_ODD.then(pl.lit("n/a")).otherwise(pl.col("target").cast(pl.String))),
        ["column 'target' (data.columns.target) must hold numbers, but is String (1 of 8,640 rows", "'n/a'"],
    ),
    "float series_id": (
        panel().with_columns(series_id=1.5),
        ["column 'series_id'", "text or whole numbers", "Float64"],
    ),
    "numbers as timestamps": (
        panel().with_columns(timestamp=row),
        ["column 'timestamp'", "8,640 numbers from 0 to 8639", "data.timestamp_format"],
    ),
    "unreadable timestamps": (
        panel().with_columns(timestamp=pl.lit("June")),
        ["not ISO 8601 (e.g. 'June')", "2013-06-30"],
    ),
    "no rows": (panel().clear(), ["the table has no rows"]),
    "nothing observed": (
        panel().with_columns(target=pl.lit(None, pl.Float64)),
        ["20 of 20 series were rejected", "no observed target"],
    ),
    "too many rejects": (
        panel().with_columns(target=pl.when(row < 5 * STEPS).then(1e30).otherwise("target")),
        ["2,160 of 8,640 rows (25.0%)", "data.max_reject_share=0.05", "target beyond 1e+18: 2,160, e.g. s00 at 2024"],
    ),
    "another phase": (
        panel().with_columns(pl.col("timestamp").dt.offset_by("30m")),
        ["every 1h", "2024-01-01 00:30:00", "the model has 2024-01-01 00:00:00", "shift the timestamps"],
    ),
    "a time zone": (
        panel().with_columns(pl.col("timestamp").dt.replace_time_zone("UTC")),
        ["timestamps are in UTC", "had no time zone", "drop the time zone"],
    ),
    "a longer step": (
        panel().group_by_dynamic("timestamp", every="1d", group_by="series_id").agg(pl.col("target").sum()),
        ["the model has a value every 1h", "only every 24 of these steps", "give a table every 1h"],
    ),
    "a shorter step": (
        panel()
        .filter(pl.col("timestamp") < START + timedelta(days=4))
        .upsample("timestamp", every="15m", group_by="series_id")
        .fill_null(strategy="forward"),
        ["off-grid timestamp", "most rows are every 1h: in training, data.freq", "data.max_reject_share"],
    ),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_table_stops_scoring(promoted: Store, case: str) -> None:
    table, parts = UNUSABLE[case]
    message = refuse(3, "score", MODEL, f"data.path={promoted.write(table)}", "output.path=out")
    for part in parts:
        assert part in message
    assert not list((promoted.folder / "out").iterdir())


@pytest.mark.parametrize("verb", ["finetune", "backtest", "train"])
def test_other_verbs_refuse_a_table_on_another_grid_too(promoted: Store, verb: str) -> None:
    table = promoted.write(UNUSABLE["a time zone"][0])
    settings = {"finetune": FINETUNE, "backtest": BACKTEST, "train": (*TRAIN, "data.freq=1d")}[verb]
    message = refuse(3, verb, MODEL, f"data.path={table}", *settings)
    assert ("off-grid timestamp" if verb == "train" else "drop the time zone") in message


def test_bad_files_stop_every_verb(promoted: Store) -> None:
    (promoted.folder / "cut.parquet").write_bytes(promoted.table.read_bytes()[:1000])
    (promoted.folder / "notes.txt").write_text("hello")
    (promoted.folder / "empty").mkdir()
    for path, part in {
        "nowhere.parquet": "no such file or folder",
        "cut.parquet": "can't be read (truncated or damaged?)",
        "notes.txt": "unknown kind of file; known are .parquet",
        "empty": "no Parquet, CSV or Arrow file in this folder",
    }.items():
        for verb, settings in {"train": TRAIN, "score": ("output.path=out",), "backtest": (), "finetune": ()}.items():
            assert f"data.path={path}" in (message := refuse(3, verb, MODEL, f"data.path={path}", *settings))
            assert part in message


def test_a_model_can_not_be_backtested_on_what_it_has_seen(promoted: Store) -> None:
    message = refuse(3, "backtest", MODEL, f"data.path={promoted.table}", "backtest.n_windows=4")
    assert "trained on data up to 2024-01-17 23:00:00, and 2 of 4 cutoffs lie before that" in message
    assert "lower backtest.n_windows, or train with a larger fit.holdout_windows" in message
    far = refuse(3, "backtest", MODEL, f"data.path={promoted.table}", "backtest.n_windows=400")
    assert "400 windows 12 steps apart begin before the panel does; lower backtest.n_windows" in far


def test_a_panel_too_short_for_its_windows_is_refused(promoted: Store) -> None:
    short = f"data.path={promoted.write(panel().filter(pl.col('timestamp') < START + timedelta(hours=30)))}"
    message = refuse(3, "train", MODEL, short, *TRAIN)
    assert "the longest of 20 has 30 steps" in message
    assert "lower window.horizon or fit.holdout_windows" in message
    message = refuse(3, "finetune", MODEL, short, *FINETUNE)
    assert "the longest of 20 has 30 usable steps" in message
    assert "lower finetune.gate_windows or finetune.report_windows" in message


def test_a_cutoff_outside_the_panel_is_refused(promoted: Store) -> None:
    score = ("score", MODEL, f"data.path={promoted.table}", "output.path=out")
    assert "ends at 2024-01-18 23:00:00, before the cutoff 2025-01-01" in refuse(3, *score, "score.cutoff=2025-01-01")
    assert "no series has begun by the cutoff 2023-01-01" in refuse(3, *score, "score.cutoff=2023-01-01")


# Settings: exit code 2.


@pytest.mark.usefixtures("store")
def test_all_mistakes_in_the_settings_are_reported_together() -> None:
    message = refuse(
        2,
        "train",
        "data.pth=x",
        "window.horizont=3",
        "model.cell=lstn",
        "fit.max_steps=-1",
        "fit.sede=3",
        "data.freq=1h",
    )
    lines = message.splitlines()
    assert lines[0] == "7 mistakes in the config:"
    for part in (
        "data.path: missing; give data.path=VALUE, or data.uri and data.query for a database",
        "data.pth: unknown key; did you mean data.path?",
        "fit.max_steps: must be greater than or equal to 0 (given: -1)",
        "fit.sede: unknown key; did you mean fit.seed?",
        "did you mean lstm?",
        "window.horizon: missing; give window.horizon=VALUE",
        "window.horizont: unknown key; did you mean window.horizon?",
    ):
        assert part in message


@pytest.mark.parametrize(
    "setting", [f"window.horizon={HORIZON}", "data.freq=1h", "model.cell=gru", "data.columns.target=y"]
)
def test_what_the_model_fixes_can_not_be_set_at_scoring(promoted: Store, setting: str) -> None:
    message = refuse(2, "score", MODEL, f"data.path={promoted.table}", "output.path=out", setting)
    key = setting.partition("=")[0]
    assert f"{key}: fixed by the trained model, can't be set here; train a model with the value you want" in message
    assert not Path("out").exists()


@pytest.mark.usefixtures("promoted")
def test_a_missing_setting_is_named() -> None:
    message = refuse(2, "score", MODEL)
    assert "data.path: missing; give data.path=VALUE, or data.uri and data.query for a database" in message
    assert "output.path: missing; give output.path=VALUE" in message


@pytest.mark.parametrize("value", ["yesterday", "1h30", "0h"])
def test_values_that_mean_nothing_are_refused(promoted: Store, value: str) -> None:
    score = ("score", MODEL, f"data.path={promoted.table}", "output.path=out")
    assert "score.cutoff" in refuse(2, *score, f"score.cutoff={value}")
    assert "1h" in refuse(2, "train", MODEL, f"data.path={promoted.table}", f"data.freq={value}", *TRAIN)


def test_a_fine_tuned_version_is_not_fine_tuned_again(promoted: Store) -> None:
    message = refuse(2, "finetune", MODEL, "registry.alias=champion", f"data.path={promoted.table}", *FINETUNE)
    assert "fine-tuned already; fine-tune its pretrained parent" in message


# Registry: exit code 4.


@pytest.mark.parametrize("alias", ["champoin", "9", "v9"])
def test_an_unknown_alias_lists_those_there_are(promoted: Store, alias: str) -> None:
    score = ("score", MODEL, f"data.path={promoted.table}", "output.path=out")
    message = refuse(4, *score, f"registry.alias={alias}")
    assert alias.removeprefix("v") in message
    assert "its aliases: challenger (v2), champion (v2), pretrained (v1); set registry.alias" in message


def test_an_unknown_model_lists_those_there_are(promoted: Store) -> None:
    message = refuse(4, "score", "registry.name=lodes", f"data.path={promoted.table}", "output.path=out")
    assert "no registered model lodes" in message
    assert f"there are: {NAME}; set registry.name" in message


@pytest.mark.parametrize("verb", ["score", "train", "promote"])
def test_a_server_that_does_not_answer_is_noticed_in_seconds(promoted: Store, verb: str) -> None:
    settings = {"score": ("output.path=out",), "train": TRAIN, "promote": ()}[verb]
    data = () if verb == "promote" else (f"data.path={promoted.table}",)
    begun = time.monotonic()
    message = refuse(4, verb, MODEL, *data, *settings, "registry.tracking_uri=http://127.0.0.1:9")
    assert time.monotonic() - begun < 15
    assert "MLflow store http://127.0.0.1:9: no answer (" in message
    assert "(registry.tracking_uri sets the store)" in message


def test_a_damaged_copy_of_a_model_is_fetched_again(promoted: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_CACHE", str(promoted.folder / "cache"))
    promoted.score()
    (weights,) = (promoted.folder / "cache").glob("*/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert any("is damaged; it is fetched again" in line for line in promoted.score(output="again").err.splitlines())
    assert_frame_equal(promoted.forecasts("again"), promoted.forecasts())


# Output: exit code 6, before any work is done. The folders below can't be written by any user.


@pytest.mark.usefixtures("promoted")
@pytest.mark.parametrize("folder", ["taken", "taken/below", "/proc/forecasts"])
def test_a_folder_that_can_not_be_written_is_refused(folder: str) -> None:
    Path("taken").write_text("a file")
    Path("unread.parquet").write_text("found before anything is done, and not opened")
    for verb in ("score", "backtest"):
        message = refuse(6, verb, MODEL, "data.path=unread.parquet", f"output.path={folder}")
        assert f"can't write into {folder}" in message
        assert "choose another output.path" in message
    message = refuse(6, "models", "export", MODEL, "registry.alias=1", f"output.path={folder}")
    assert folder in message
