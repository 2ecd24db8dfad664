"""`forecast data`: prepared panels take the place of tables in every verb, and grow."""

from datetime import datetime, timedelta
from pathlib import Path

import mlflow
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, HORIZON, NAME, TRAIN, Store, panel, refuse, six_series, succeed, written

from forecast.config import RegistryConfig
from forecast.tracking.registry import Registry

pytestmark = pytest.mark.usefixtures("store")


def prepared(table: pl.DataFrame, folder: Path, *settings: str) -> Path:
    path = folder / "table.parquet"
    table.write_parquet(path)
    succeed(
        "data",
        "prepare",
        f"data.path={path}",
        f"window.horizon={HORIZON}",
        f"output.path={folder / 'panel'}",
        *settings,
    )
    return folder / "panel"


def test_every_verb_takes_a_prepared_panel_for_the_table(tmp_path: Path) -> None:
    """The same models, scores and forecasts come of it, bit by bit."""
    folder = prepared(six_series(), tmp_path, "prepare.chunk_rows=1000")
    results: list[object] = []
    for path in (folder, tmp_path / "table.parquet"):
        data = f"data.path={path}"
        name = f"registry.name={NAME if path == folder else 'other'}"
        succeed("train", name, data, *TRAIN)
        succeed("finetune", name, data, *FINETUNE)
        succeed("backtest", name, data, *BACKTEST, f"output.path={tmp_path / 'judged'}")
        succeed("promote", name)
        out = tmp_path / f"out-{path.stem}"
        succeed("score", name, data, f"output.path={out}")
        digests = [version.digest for version in Registry(RegistryConfig(name=name.partition("=")[2])).versions()]
        results.append((digests, written(out).drop("model_version", "model_name").rows()))
    assert results[0] == results[1]


def test_preparing_again_reuses_the_panel_and_new_settings_make_a_new_one(tmp_path: Path) -> None:
    folder = prepared(panel(), tmp_path)
    setting = (f"data.path={tmp_path / 'table.parquet'}", f"window.horizon={HORIZON}", f"output.path={folder}")
    index = (folder / "panel.json").read_bytes()
    assert "panel: reused, 20 series, 8,640 rows" in succeed("data", "prepare", *setting).out
    assert (folder / "panel.json").read_bytes() == index
    assert "reused" not in succeed("data", "prepare", *setting, "data.lags=[24]").out
    assert (folder / "panel.json").read_bytes() != index


def test_a_panel_grows_by_what_the_night_has_brought(promoted: Store, tmp_path: Path) -> None:
    early, late = pl.col("timestamp") <= END - timedelta(days=2), pl.col("timestamp") > END - timedelta(days=2)
    table = pl.read_parquet(promoted.table)
    folder = prepared(table.filter(early), tmp_path)
    new = promoted.write(table.filter(late | (pl.col("timestamp") == END - timedelta(days=2))), "new.parquet")
    done = succeed("data", "append", f"data.path={new}", f"output.path={folder}")
    assert done.lines[-1].endswith("960 new values, 0 new series, 0 values revised")
    promoted.score(folder, output="grown")
    promoted.score(output="whole")
    assert promoted.forecasts("grown").equals(promoted.forecasts("whole"))
    runs = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("forecaster").experiment_id], "tags.job = 'append'"
    )
    assert runs[0].data.metrics["append/new_steps"] == 960


def test_a_changed_past_is_told(tmp_path: Path) -> None:
    folder = prepared(panel(), tmp_path)
    changed = panel().head(3).with_columns(pl.col("target") + 1)
    changed.write_parquet(tmp_path / "new.parquet")
    append = ("data", "append", f"data.path={tmp_path / 'new.parquet'}", f"output.path={folder}")
    message = refuse(3, *append, "append.revisions=fail")
    assert message.startswith(
        "3 values of 1 series differ from those of the prepared panel: s00 at 2024-01-01 00:00:00"
    )
    assert succeed(*append).lines[-1].endswith("0 new values, 0 new series, 3 values revised")


def test_the_profile_of_a_panel_is_printed_and_written(tmp_path: Path) -> None:
    table = tmp_path / "table.parquet"
    closed = pl.col("timestamp") < pl.datetime(2024, 1, 3)
    panel().filter((pl.col("series_id") != "s07") | closed).write_parquet(table)
    done = succeed("data", "profile", f"data.path={table}", f"output.path={tmp_path / 'profile'}")
    assert "20 series every 1h" in done.out
    assert "1 of 20, without a value in the last 240 steps: s07; they have ended, and score" in done.out
    assert "score.max_age" in done.out
    ended = pl.read_parquet(tmp_path / "profile" / "ended.parquet")
    assert ended.rows() == [("s07", datetime(2024, 1, 2, 23), 24 * 16)]
    none = succeed("data", "profile", f"data.path={table}", "profile.max_age=none")
    assert "score.max_age" not in none.out
    profile = pl.read_parquet(tmp_path / "profile" / "profile.parquet")
    assert profile.height == 20
    assert profile["length"].unique().sort().to_list() == [48, 24 * 18]
    page = (tmp_path / "profile" / "profile.html").read_text()
    assert "<html" in page
    assert "Plotly" in page
    assert "Series that have ended" in page
    assert "<td>2024-01-02 23:00</td>" in page


def test_training_logs_what_the_panel_is_like(promoted: Store) -> None:
    client = mlflow.MlflowClient(promoted.uri)
    experiment = client.get_experiment_by_name(NAME)
    (run,) = client.search_runs([experiment.experiment_id], "tags.job = 'train'")
    files = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"profile.parquet", "profile.html", "quality.parquet", "rejects.parquet"} <= files


def test_wide_and_aggregated_tables_go_through_all_verbs(tmp_path: Path) -> None:
    """A column per series, by quarters of an hour, forecast by the hour; scored as trained."""
    quarter = panel().filter(pl.col("series_id") < "s04").upsample("timestamp", every="15m", group_by="series_id")
    quarter = quarter.with_columns(pl.col("series_id").forward_fill(), pl.col("target").forward_fill() / 4)
    wide = quarter.pivot("series_id", index="timestamp", values="target").sort("timestamp")
    last_hour = wide.tail(1).select(
        pl.col("timestamp").dt.offset_by(f"{15 * step}m") if name == "timestamp" else pl.col(name)
        for step in [1]
        for name in wide.columns
    )
    wide = pl.concat([wide, last_hour])
    path = tmp_path / "wide.csv"
    wide.write_csv(path)
    settings = ("data.layout=wide", "data.aggregate=sum", "data.freq=1h", "data.max_reject_share=0.2")
    succeed("train", f"registry.name={NAME}", f"data.path={path}", *settings, *TRAIN, "fit.max_steps=0")
    name = (f"registry.name={NAME}", "registry.alias=pretrained")
    out = tmp_path / "out"
    succeed("score", *name, f"data.path={path}", f"output.path={out}", "data.max_reject_share=0.2")
    forecasts = written(out)
    assert forecasts["series_id"].unique().sort().to_list() == ["s00", "s01", "s02", "s03"]
    assert forecasts["cutoff"].unique().to_list() == [END - timedelta(hours=1)]
    folder = tmp_path / "panel"
    succeed("data", "prepare", f"data.path={path}", *settings, f"window.horizon={HORIZON}", f"output.path={folder}")
    succeed("score", *name, f"data.path={folder}", f"output.path={tmp_path / 'again'}")
    assert written(tmp_path / "again").equals(forecasts)


def test_known_and_static_covariates_from_tables_of_their_own(tmp_path: Path) -> None:
    table = panel().filter(pl.col("series_id") < "s04")
    hours = pl.datetime_range(datetime(2024, 1, 1), END + timedelta(hours=HORIZON), "1h", eager=True)
    event = pl.when(pl.col("timestamp").dt.weekday() == 3).then(pl.lit("match")).otherwise(pl.lit("none"))
    hours.alias("timestamp").to_frame().with_columns(event=event).write_parquet(tmp_path / "known.parquet")
    pl.DataFrame({"series_id": ["s00", "s01", "s02"], "city": ["Ulm", "Ulm", "Bonn"]}).write_csv(
        tmp_path / "static.csv"
    )
    table.write_parquet(tmp_path / "table.parquet")
    source = (
        f"registry.name={NAME}",
        f"data.path={tmp_path / 'table.parquet'}",
        f"data.known_path={tmp_path / 'known.parquet'}",
        f"data.static_path={tmp_path / 'static.csv'}",
    )
    succeed(
        "train", *source, "data.known_covariates=[event]", "data.static_covariates=[city]", *TRAIN, "fit.max_steps=0"
    )
    succeed("score", *source, "registry.alias=pretrained", f"output.path={tmp_path / 'out'}")
    assert written(tmp_path / "out").height == 4 * HORIZON
    # What the horizon lacks is told.
    short = pl.read_parquet(tmp_path / "known.parquet").head(24 * 18 + 2)
    short.write_parquet(tmp_path / "short.parquet")
    swapped = [value.replace("known.parquet", "short.parquet") for value in source]
    done = succeed("score", *swapped, "registry.alias=pretrained", f"output.path={tmp_path / 'out'}")
    assert "event: 40 of 48 cells missing over the horizon, in 4 series: s00, s01, s02, s03" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("prepair",), 2, "unknown verb data 'prepair'; did you mean prepare?"),
        (("prepare", "window.horizon=3", "output.path=x"), 2, r"give data.path=VALUE, or data.uri and data.query"),
        (("append", "data.path=x", "output.path=nowhere"), 3, "nowhere: no prepared panel; `forecast data prepare`"),
        (("prepare", "data.path=x", "output.path=y", "model.cell=gru"), 2, "model.cell: unknown key"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], code: int, message: str) -> None:
    Path("x").write_text("found before anything is done, and not opened")
    assert message in refuse(code, "data", *arguments)
