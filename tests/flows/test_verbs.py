"""Every verb on a small panel, from training to roll-back, with a real MLflow store."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import polars as pl
import pytest
from flow import BACKTEST, END, FINETUNE, HORIZON, NAME, SERIES, TRAIN, Store, panel, refuse, six_series, succeed
from mlflow import MlflowClient
from mlflow.entities import Run
from polars.testing import assert_frame_equal

import forecast as library
from forecast import promotion
from forecast.config import RegistryConfig
from forecast.tracking import registry as registry_module
from forecast.tracking import store
from forecast.tracking import versions as versions_module
from forecast.tracking.registry import Registry

MODEL = f"registry.name={NAME}"
QUANTILES = [f"q{level}0" for level in range(1, 10)]
COLUMNS = [
    "series_id",
    "timestamp",
    "cutoff",
    "step",
    "mean",
    *QUANTILES,
    "source",
    "model_version",
    "model_name",
    "model_digest",
]


def aliases(store: Store) -> dict[str, int]:
    return {alias: version.number for version in versions(store).values() for alias in version.aliases}


def versions(store: Store) -> dict[int, versions_module.Version]:
    registry = Registry(RegistryConfig(name=NAME, tracking_uri=store.uri))
    return {version.number: version for version in registry.versions()}


def runs(store: Store) -> list[Run]:
    """Return all runs, oldest first."""
    return runs_of(store.uri)


def runs_of(uri: str) -> list[Run]:
    """Return all runs of jobs in a store, oldest first."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    every = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in every if run.data.tags["job"] != "chart"]


def shuffled(seed: int = 0) -> pl.DataFrame:
    """Return the panel with the values of each series in any order: what is learnt from it is wrong."""
    return panel().with_columns(pl.col("target").shuffle(seed).over("series_id"))


def fine_tune_again(store: Store, *arguments: object, table: Path | None = None) -> None:
    """Make v3, and backtest it beside the champion."""
    succeed("finetune", MODEL, f"data.path={table or store.table}", *FINETUNE, *arguments)
    succeed("backtest", MODEL, f"data.path={store.table}", *BACKTEST)


def test_each_verb_adds_one_run_and_each_model_one_version_with_its_lineage(promoted: Store) -> None:
    assert {run.info.status for run in runs(promoted)} == {"FINISHED"}
    train, finetune, backtest, promote = (str(run.info.run_name) for run in runs(promoted))
    until = [versions(promoted)[number].tags["trained_until"] for number in (1, 2)]
    assert (train, finetune) == tuple(
        f"{verb} {moment[:10]} 23:00" for verb, moment in zip(("train v1", "finetune v2"), until, strict=True)
    )
    assert (backtest, promote) == ("backtest v2 2024-01-17 23:00..2024-01-18 11:00", "promote v2")
    labels = [(run.data.tags["kind"], run.data.tags["version"]) for run in runs(promoted)]
    assert labels == [("train", "1"), ("finetune", "2"), ("backtest", "2"), ("promote", "2")]
    pretrained, tuned = (versions(promoted)[number] for number in (1, 2))
    assert [pretrained.run_id, tuned.run_id] == [run.info.run_id for run in runs(promoted)[:2]]
    assert (pretrained.kind, tuned.kind) == ("pretrained", "fine_tuned")
    assert (tuned.tags["parent_version"], tuned.tags["parent_digest"]) == ("1", pretrained.digest)
    assert tuned.digest != pretrained.digest
    assert "parent_version" not in pretrained.tags
    assert pretrained.tags["data_digest"] == tuned.tags["data_digest"]
    assert tuned.tags["backtest_run"] == runs(promoted)[2].info.run_id
    assert aliases(promoted) == {"pretrained": 1, "challenger": 2, "champion": 2}


def test_the_loss_of_a_training_is_that_of_the_kept_weights_and_not_the_end_of_its_curve(fine_tuned: Store) -> None:
    run = runs(fine_tuned)[0]
    points = MlflowClient(fine_tuned.uri).get_metric_history(run.info.run_id, "val/loss")
    kept = max(points, key=lambda point: point.timestamp).value
    curve = Registry(RegistryConfig(name=NAME)).curve(run.info.run_id, ["val/loss"])["value"]
    assert run.data.metrics["val/loss"] == kept != curve[-1]
    assert len(points) == len(curve) + 1
    assert f"val/loss {kept:.4f}" in succeed("models", "show", MODEL).out


def test_fine_tuning_leaves_the_series_alone_that_have_nothing_of_their_own(fine_tuned: Store) -> None:
    run = runs(fine_tuned)[1]
    decisions = Registry(RegistryConfig(name=NAME)).read_table(run.info.run_id, "decisions.parquet")
    tuned = decisions.filter(reason="tuned")["series_id"]
    assert decisions["series_id"].to_list() == SERIES
    assert 0 < len(tuned) < len(SERIES)
    assert len(tuned) == run.data.metrics["finetune/series_tuned"]
    assert run.data.metrics["finetune/uplift"] > 0


def test_the_model_beats_seasonal_naive_and_its_fine_tuned_child_beats_the_model(judged: Store) -> None:
    metrics = runs(judged)[2].data.metrics
    naive, pretrained, tuned = (
        metrics[f"backtest/{name}/mase"] for name in ("seasonal_naive", "pretrained", "fine_tuned")
    )
    assert tuned < pretrained < naive
    assert metrics["backtest/fine_tuned/n_windows"] == 2 * len(SERIES)


def test_the_same_settings_and_data_train_the_same_model_in_any_store(promoted: Store) -> None:
    other = f"registry.tracking_uri=sqlite:///{promoted.folder / 'other.db'}"
    for setting in ([], [other]):
        succeed("train", MODEL, f"data.path={promoted.table}", *setting, *TRAIN)
    twin = Registry(RegistryConfig(name=NAME, tracking_uri=other.partition("=")[2])).resolve(1)
    first, again = versions(promoted)[1], versions(promoted)[3]
    for tag in ("digest", "data_digest", "config_digest"):
        assert twin.tags[tag] == again.tags[tag], tag
    # The first version was trained from the same table in another place, which is another setting.
    assert [first.tags[tag] for tag in ("digest", "data_digest")] == [
        again.tags[tag] for tag in ("digest", "data_digest")
    ]


def test_forecasts_are_complete_in_order_and_say_where_they_come_from(promoted: Store) -> None:
    promoted.score()
    frame = promoted.forecasts()
    assert frame.columns == COLUMNS
    assert_frame_equal(frame, frame.sort("series_id", "step"))
    assert frame.group_by("series_id", maintain_order=True).len().rows() == [(name, HORIZON) for name in SERIES]
    assert frame["step"].to_list() == list(range(1, HORIZON + 1)) * len(SERIES)
    assert (frame["cutoff"] == END).all()
    ahead = frame.select((pl.col("timestamp") - pl.col("cutoff")).dt.total_minutes()).to_series()
    assert (ahead == 60 * frame["step"]).all()
    values = frame.select("mean", *QUANTILES).to_numpy()
    assert np.isfinite(values).all()
    assert (np.diff(values[:, 1:]) >= 0).all()
    names = frame.select("model_name", "model_version", "model_digest").unique().rows()
    assert names == [(NAME, "2", versions(promoted)[2].digest)]
    tuned = runs(promoted)[1].data.metrics["finetune/series_tuned"]
    assert dict(frame["source"].value_counts().iter_rows()) == {
        "fine_tuned": tuned * HORIZON,
        "pretrained": (len(SERIES) - tuned) * HORIZON,
    }
    assert promoted.rejects().is_empty()


def test_the_manifest_counts_every_series_and_row_and_hashes_the_files(promoted: Store) -> None:
    bad = panel().with_columns(
        pl.when(series_id=SERIES[3]).then(None).otherwise("target").alias("target"),
        pl.when(pl.int_range(pl.len()) == 5).then(None).otherwise("series_id").alias("series_id"),
    )
    done = promoted.score(promoted.write(bad), "data.max_reject_share=0.1")
    (path,) = (promoted.folder / "out" / "manifests").iterdir()
    content = json.loads(path.read_text())
    frame, rejects = promoted.forecasts(), promoted.rejects()
    assert content["series"] == {"in": 20, "forecast": 19, "rejected": 1}
    assert content["series"]["forecast"] == frame["series_id"].n_unique()
    assert content["rows"]["in"] == content["rows"]["kept"] + content["rows"]["rejected"] == bad.height
    assert content["rows"]["written"] == frame.height
    assert content["rejects"] == dict(rejects["reason"].value_counts().iter_rows())
    assert content["rejects"] == {"no observed target": 1, "null series_id": 1}
    assert sum(content["sources"].values()) == 19
    champion = versions(promoted)[2]
    assert [content[key] for key in ("model", "model_version", "model_digest")] == [NAME, "2", champion.digest]
    assert len(content["files"]) == 1
    for name, expected in content["files"].items():
        assert hashlib.sha256((promoted.folder / "out" / name).read_bytes()).hexdigest() == expected
    assert "20 series = 19 forecast + 1 rejected" in done.out


def test_scoring_twice_gives_the_same_bytes(promoted: Store) -> None:
    """On one machine, with the same versions and number of threads: other processors round otherwise."""

    def contents(output: str) -> dict[str, bytes]:
        folder = promoted.folder / output
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        written = {"written_at": None, "run_id": None}  # Of manifests, all but when and by which run.
        return {
            name: json.dumps(json.loads(content) | written).encode() if name.endswith(".json") else content
            for name, content in files.items()
        }

    promoted.score()
    first = contents("out")
    promoted.score()
    promoted.score(output="other")
    assert sorted(name.split("/")[0] for name in first) == [".lock", "forecasts", "latest", "manifests", "rejects"]
    assert contents("out") == contents("other") == first


def test_an_earlier_cutoff_gets_its_own_files_and_sees_nothing_behind_it(promoted: Store) -> None:
    cut = panel().filter(pl.col("timestamp") <= pl.datetime(2024, 1, 17))
    promoted.score(promoted.write(cut), output="cut")
    promoted.score(None, "score.cutoff=2024-01-17", output="past")
    assert_frame_equal(promoted.forecasts("past"), promoted.forecasts("cut"))
    promoted.score(output="past")
    assert len(list((promoted.folder / "past" / "forecasts").iterdir())) == 2


def test_mlflow_and_python_give_the_forecasts_of_score(promoted: Store) -> None:
    promoted.score()
    expected = promoted.forecasts().drop("model_version")
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    served = pl.from_pandas(loaded.predict(panel().to_pandas())).drop("model_version")
    assert_frame_equal(served.cast(expected.schema), expected, check_exact=True)

    exported = promoted.folder / "exported"
    done = succeed("models", "export", MODEL, "registry.alias=champion", f"output.path={exported}")
    assert done.lines == [f"{NAME} v2 -> {exported}"]
    forecasts = library.forecast(library.load(exported), panel())
    names = ["model_name", "model_digest"]
    assert_frame_equal(forecasts.frame.drop("model_version"), expected.drop(names), check_exact=True)


def test_changes_of_all_weights_are_registered_scored_and_gone_on_with(promoted: Store) -> None:
    chosen = [f"finetune.series=[{SERIES[0]},{SERIES[1]}]", "finetune.kind=full", "finetune.steps=3"]
    open_gate = "finetune.min_gain=0", "finetune.min_windows_better=0"
    succeed("finetune", MODEL, f"data.path={promoted.table}", *FINETUNE, *chosen, *open_gate)
    promoted.score(None, "registry.alias=challenger")
    expected = promoted.forecasts().drop("model_version")
    assert set(expected.filter(source="fine_tuned")["series_id"]) <= set(SERIES[:2])
    assert expected["source"].unique().sort().to_list() == ["fine_tuned", "pretrained"]
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@challenger")
    served = pl.from_pandas(loaded.predict(panel().to_pandas())).drop("model_version")
    assert_frame_equal(served.cast(expected.schema), expected, check_exact=True)
    again = "registry.alias=challenger", "finetune.incremental=true"
    done = succeed("finetune", MODEL, f"data.path={promoted.table}", *FINETUNE, *chosen, *open_gate, *again)
    assert "uplift 0.00%" in done.lines[-1]
    assert versions(promoted)[4].tags["parent_digest"] == versions(promoted)[3].digest
    promoted.score(None, "registry.alias=challenger", output="again")
    names = "model_version", "model_digest"
    assert_frame_equal(promoted.forecasts("again").drop(names), expected.drop(names, strict=False), check_exact=True)


def test_no_pickle_is_stored(promoted: Store) -> None:
    stored = [path for path in promoted.mlruns.rglob("*") if path.is_file()]
    assert any(path.name == "model.safetensors" for path in stored)
    for path in stored:
        assert path.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib"}
        start = path.read_bytes()[:4]
        # Pickle (a safetensors file may begin with the same byte, of its length), and the zip that torch.save makes.
        assert not start.startswith((*(bytes((0x80, protocol)) for protocol in range(2, 6)), b"PK\x03\x04")), path


@pytest.mark.parametrize("verb", ["finetune", "backtest", "score"])
def test_the_number_of_calls_to_mlflow_does_not_depend_on_the_number_of_series(
    promoted: Store, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    few = promoted.write(six_series())
    arguments = {"finetune": FINETUNE, "backtest": BACKTEST, "score": ["output.path=out"]}[verb]
    counts = []
    for table in (few, promoted.table):
        calls = count_calls(monkeypatch)
        succeed(verb, MODEL, f"data.path={table}", *arguments)
        counts.append(calls)
    assert counts[0] == counts[1]
    assert 5 < counts[1].total() < 60
    last = runs(promoted)[-2:]
    assert len(last[0].data.metrics) == len(last[1].data.metrics) or verb == "score"  # counts per source and reason


def count_calls(monkeypatch: pytest.MonkeyPatch, connect: Callable[[str], Any] = store.connect) -> Counter[str]:
    """Count the calls of the real client from here on."""
    calls: Counter[str] = Counter()

    class Counting:
        def __init__(self, client: Any) -> None:
            self.client = client

        def __getattr__(self, name: str) -> Any:
            calls[name] += 1
            return getattr(self.client, name)

    def counting(uri: str) -> tuple[Any, Counting]:
        deadlines, client = connect(uri)
        return deadlines, Counting(client)

    monkeypatch.setattr(registry_module, "connect", counting)
    return calls


def test_a_run_has_about_30_metrics(promoted: Store) -> None:
    promoted.score()
    counts = {run.data.tags["job"]: len(run.data.metrics) for run in runs(promoted)}
    assert counts.keys() == {"train", "finetune", "backtest", "promote", "score"}
    assert max(counts.values()) <= 32


def test_promotion_is_refused_without_a_backtest(fine_tuned: Store) -> None:
    message = refuse(5, "promote", MODEL)
    assert f"{NAME} v2 has no backtest; run forecast backtest registry.name={NAME} registry.alias=2" in message
    assert aliases(fine_tuned) == {"pretrained": 1, "challenger": 2}


def test_a_worse_challenger_is_refused_and_the_champion_stays(promoted: Store) -> None:
    fine_tune_again(promoted, "finetune.min_gain=0", "finetune.min_windows_better=0", table=promoted.write(shuffled()))
    message = refuse(5, "promote", MODEL)
    assert f"{NAME} v3" in message
    assert "worse than champion in MASE and WQL" in message
    assert "its base" not in message, "that is worse than the champion, too"
    assert aliases(promoted) == {"pretrained": 1, "challenger": 3, "champion": 2}
    assert versions(promoted)[3].tags["parent_version"] == "1"


def test_a_backtest_with_refits_leaves_tables_and_a_page_but_does_not_promote(fine_tuned: Store) -> None:
    """It judges how the version is made, at cutoffs that the version itself has seen, too."""
    out = fine_tuned.folder / "judged"
    done = succeed(
        "backtest",
        MODEL,
        f"data.path={fine_tuned.write(six_series())}",
        f"output.path={out}",
        "backtest.n_windows=3",
        "backtest.refit=scratch",
        "backtest.refit_every=2",
        "backtest.fit.max_steps=0",
        "backtest.finetune.gate_windows=2",
        "backtest.segments=[volume]",
        "backtest.baselines=[seasonal_naive,dynamic_optimized_theta]",
    )
    assert "By volume" in done.out
    small = ["summary", "steps", "levels", "intervals", "segments", "wins", "failures", "skipped"]
    tables = {f"{name}.parquet" for name in ("scores", "forecasts", *small)}
    assert {path.name for path in out.iterdir()} == {*tables, "report.html", ".lock"}
    client, run = mlflow.MlflowClient(), runs(fine_tuned)[-1]
    assert tables | {"report.html"} <= {file.path for file in client.list_artifacts(run.info.run_id)}
    wins = pl.read_parquet(out / "wins.parquet").rows_by_key(["model", "baseline"], named=True, unique=True)
    share = wins["fine_tuned", "dynamic_optimized_theta"]["pinball"]
    assert run.data.metrics["backtest/fine_tuned/wins_dynamic_optimized_theta/pinball"] == share
    page = (out / "report.html").read_text()
    assert "Where the models are better" in page
    assert "low: " in page
    scores = pl.read_parquet(out / "scores.parquet")
    assert scores.height == 4 * 3 * 6
    assert "has no backtest" in refuse(5, "promote", MODEL)


def test_a_promotion_while_another_is_judged_is_kept(judged: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(RegistryConfig(name=NAME))
    judge = promotion.judge

    def meanwhile(*arguments: Any) -> promotion.Verdict:
        registry.promote(registry.resolve(1))
        return judge(*arguments)

    monkeypatch.setattr(promotion, "judge", meanwhile)
    message = refuse(5, "promote", MODEL)
    assert (
        f"{NAME} v2 is not promoted: {NAME} v1 has become champion (promoted) since it was judged beside no" in message
    )
    assert aliases(judged)["champion"] == 1
    assert registry.champions().line == [1]
    MlflowClient().delete_registered_model_alias(NAME, "champion")
    done = succeed("promote", MODEL, "promote.force=true")
    assert f"promote.force=true, although {NAME} v1 has become champion" in done.out
    assert (aliases(judged)["champion"], registry.champions().line) == (2, [1, 2])


def test_a_backtest_beside_an_earlier_champion_does_not_promote(judged: Store) -> None:
    """The champion changed after the backtest, so that its verdict is about another one."""
    succeed("finetune", MODEL, f"data.path={judged.table}", *FINETUNE)
    succeed("backtest", MODEL, f"data.path={judged.table}", *BACKTEST)
    succeed("promote", MODEL, "registry.alias=2")
    assert f"not backtested beside the present champion, {NAME} v2" in refuse(5, "promote", MODEL)
    assert aliases(judged)["champion"] == 2


def test_promotion_moves_the_champion_and_rollback_moves_it_back(promoted: Store) -> None:
    promoted.score(output="before")
    fine_tune_again(promoted)  # not worse: the same
    done = succeed("promote", MODEL)
    assert done.lines[0].startswith(f"{NAME} v3 is champion: MASE ")
    assert aliases(promoted) == {"pretrained": 1, "challenger": 3, "champion": 3}
    promoted.score(output="promoted")
    assert set(promoted.forecasts("promoted")["model_version"]) == {"3"}

    assert succeed("models", "rollback", MODEL).lines == [f"champion of {NAME}: v3 -> v2"]
    assert aliases(promoted) == {"pretrained": 1, "challenger": 3, "champion": 2}
    promoted.score(output="after")
    assert_frame_equal(promoted.forecasts("after"), promoted.forecasts("before"))
    assert f"nothing to roll back to: {NAME} v2" in refuse(4, "models", "rollback", MODEL)


def test_promoting_the_champion_again_changes_nothing(promoted: Store) -> None:
    assert succeed("promote", MODEL).lines == [f"{NAME} v2 is champion: it already was"]
    assert len(runs(promoted)) == 4


@pytest.mark.usefixtures("promoted")
def test_models_are_listed_and_shown() -> None:
    rows = [line.split() for line in succeed("models", "list", MODEL).lines if line.strip().startswith("v")]
    assert [row[0] for row in rows] == ["version", "v2", "v1"]
    assert rows[1][1:5] == ["challenger,", "champion", "fine_tuned", "v1"]
    judged = Registry(RegistryConfig(name=NAME)).resolve(2).tags["backtest_run"]
    metrics = MlflowClient().get_run(judged).data.metrics
    assert rows[1][8:11] == [f"{metrics['mase']:.4f}", f"{metrics['wql']:.4f}", "panel"]
    assert len(rows[2]) == 6, "it has no backtest"
    ranked = succeed("models", "list", MODEL, "list.order=accuracy").lines
    assert [line.split()[0] for line in ranked if line.strip().startswith("v")] == ["version", "v2", "v1"]
    shown = dict(line.split(maxsplit=1) for line in succeed("models", "show", MODEL, "registry.alias=champion").lines)
    assert (shown["version"], shown["aliases"], shown["parent_version"]) == (f"{NAME} v2", "challenger, champion", "1")
    assert (shown["horizon"], shown["replaced_version"]) == (str(HORIZON), "none")


@pytest.mark.usefixtures("store")
def test_each_verb_ends_with_one_line(tmp_path: Path) -> None:
    data = f"data.path={tmp_path / 'panel.parquet'}"
    six_series().write_parquet(tmp_path / "panel.parquet")
    train = succeed("train", MODEL, data, *TRAIN, "fit.max_steps=0")
    tune = succeed("finetune", MODEL, data, *FINETUNE)
    judge = succeed("backtest", MODEL, data, *BACKTEST)
    promote = succeed("promote", MODEL)
    score = succeed("score", MODEL, data, "output.path=out")
    assert [len(done.lines) for done in (train, tune, promote, score)] == [1, 1, 1, 1]
    for number, done in ((1, train), (2, tune), (2, judge), (2, promote), (2, score)):
        assert done.lines[-1].startswith(f"{NAME} v{number} ")
    for done in (train, tune, judge, score):
        assert " 0 rejects" in done.lines[-1]
    wins = next(number for number, line in enumerate(judge.lines) if "Share of series" in line)
    table = judge.lines[:wins]
    assert sum("fine_tuned" in line for line in table) == 1
    assert all(line[0] in "┏┃┡│└" for line in table)


@pytest.mark.usefixtures("store")
def test_a_csv_file_is_read_at_scoring_as_it_was_in_training(tmp_path: Path) -> None:
    """Text statics stay text though they look like numbers in a part of the table, and numbers stay numbers."""
    names = pl.col("series_id")
    table = panel().with_columns(
        region=pl.when(names < "s05").then(pl.lit("07")).otherwise(pl.lit("north")),
        floor=names.str.slice(1).cast(pl.Float64),
        open=names < "s08",
    )
    statics = "data.static_covariates=[region,floor,open]"
    table.write_csv(tmp_path / "all.csv")
    succeed("train", MODEL, "data.path=all.csv", statics, *TRAIN, "fit.max_steps=0")
    for name, part in {"all": table, "few": table.filter(pl.col("region") == "07")}.items():
        part.with_columns(pl.col("open").cast(pl.String).str.to_titlecase()).write_csv(f"{name}.csv")
        succeed("score", MODEL, "registry.alias=pretrained", f"data.path={name}.csv", f"output.path={name}")
    (every,), (few,) = (list((tmp_path / name).glob("forecasts/*/*.parquet")) for name in ("all", "few"))
    expected = pl.read_parquet(every).filter(names < "s05")
    assert_frame_equal(pl.read_parquet(few), expected, check_exact=False, rel_tol=1e-5)
    artifact = library.load(next((tmp_path / "cache").iterdir()))
    assert artifact.categories == {"region": ("07", "north"), "open": ("false", "true")}


@pytest.mark.usefixtures("store")
def test_timestamps_may_be_local_or_in_another_time_zone_than_in_training(tmp_path: Path) -> None:
    local = pl.col("timestamp").dt.replace_time_zone("Asia/Tokyo")
    tables = {
        "training": six_series().with_columns(local),
        "naive": six_series(),
        "utc": six_series().with_columns(local.dt.convert_time_zone("UTC")),
    }
    for name, table in tables.items():
        table.write_parquet(f"{name}.parquet")
    succeed("train", MODEL, "data.path=training.parquet", *TRAIN, "fit.max_steps=0")
    written = []
    for name in tables:
        score = ("score", MODEL, "registry.alias=1", f"data.path={name}.parquet", f"output.path={name}")
        if name == "naive":
            assert "data.local_time=true if they are local time of Asia/Tokyo" in refuse(3, *score)
            score = (*score, "data.local_time=true")
        succeed(*score)
        (path,) = (tmp_path / name).glob("forecasts/*/*.parquet")
        written.append(path.read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_training_that_is_killed_goes_on_to_the_model_it_would_have_been(store: str, tmp_path: Path) -> None:
    table, folder = tmp_path / "panel.parquet", tmp_path / "state"
    six_series().write_parquet(table)
    command = ["train", MODEL, f"data.path={table}", *TRAIN, "fit.max_steps=100", "fit.patience=100"]
    kept = f"fit.checkpoint={folder}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [sys.executable, "-m", "pipelines.cli", *command, kept]
    running = subprocess.Popen(program, stderr=subprocess.DEVNULL, env=environment)
    while not (folder / "training.safetensors").exists():
        assert running.poll() is None
        time.sleep(0.01)
    running.kill()
    running.wait()
    message = refuse(2, *command, kept, "fit.seed=1")
    assert "another training" in message
    assert "fit.seed was 0, is 1" in message
    succeed(*command, kept)
    succeed(*command)
    resumed, undisturbed = Registry(RegistryConfig(name=NAME, tracking_uri=store)).versions()
    assert resumed.digest == undisturbed.digest
    assert resumed.tags["config_digest"] == undisturbed.tags["config_digest"]
    steps = [run.data.metrics.get("resumed_at_step") for run in runs_of(store)]
    assert sum(step is not None and step > 0 for step in steps) == 1
    assert not any(folder.iterdir())


def test_an_ensemble_goes_through_every_verb_like_one_network(store: str, tmp_path: Path) -> None:
    table = tmp_path / "panel.parquet"
    six_series().write_parquet(table)
    data = f"data.path={table}"
    succeed("train", MODEL, data, *TRAIN, "fit.ensemble=2")
    succeed("finetune", MODEL, data, *FINETUNE)
    succeed("backtest", MODEL, data, *BACKTEST)
    succeed("promote", MODEL)
    ensemble = Store(store, table, tmp_path / "mlruns", tmp_path)
    ensemble.score()
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@champion").predict(six_series().to_pandas())
    columns = ["series_id", "step", *QUANTILES]
    assert_frame_equal(pl.from_pandas(served).select(columns), ensemble.forecasts().select(columns))
    metrics = runs(ensemble)[0].data.metrics
    assert metrics["steps"] == 40
    assert metrics["member_02/steps"] == 20


def test_a_forecast_is_explained_with_tables_a_figure_and_a_line(promoted: Store) -> None:
    out = promoted.folder / "why"
    cutoff = datetime(2024, 1, 17, 12)
    asked = MODEL, f"data.path={promoted.table}", "explain.series=s03", f"explain.cutoff={cutoff.isoformat()}"
    done = succeed("explain", *asked, f"output.path={out}", "explain.step=2")
    line = " ".join(done.lines[-1].split())
    assert line.startswith(f"{NAME} v2 (fine_tuned): s03 from 2024-01-17 12:00:00, q50 at step 2 ")
    rows, summary = (pl.read_parquet(out / f"{name}.parquet") for name in ("explanation", "summary"))
    assert (out / "explanation.png").stat().st_size > 10_000
    assert rows.select("series_id", "cutoff", "step").unique().rows() == [("s03", cutoff, "2")]
    assert summary["attribution"].sum() == pytest.approx(rows["attribution"].sum())
    assert set(summary["input"]) == {"target", "calendar"}
    promoted.score(None, f"score.cutoff={cutoff.isoformat()}")
    scored = promoted.forecasts().filter(series_id="s03", step=2)["q50"].item()
    assert f"q50 at step 2 {scored:.4g} = " in line
    other = succeed("explain", *asked, "explain.method=occlusion").lines[-1]
    assert "without its inputs" not in other
    assert "no series 's99' among the 20" in refuse(3, "explain", *asked[:2], "explain.series=s99")


def test_a_search_registers_the_best_of_its_trials_which_are_runs_inside_its_own(store: str, tmp_path: Path) -> None:
    six_series().write_parquet(tmp_path / "panel.parquet")
    quick = "fit.max_steps=10", "fit.validation_every=5", "tune.space.fit.learning_rate={low:1e-4,high:1e-2}"
    wanted = MODEL, f"data.path={tmp_path / 'panel.parquet'}", f"output.path={tmp_path / 'search'}", *TRAIN, *quick
    line = succeed("tune", *wanted, "tune.n_trials=2").lines[-1]
    assert line.startswith(f"{NAME} v1 (pretrained): trial ")
    client = MlflowClient(store)
    search, *trials = sorted(client.search_runs(["1"]), key=lambda run: run.info.start_time)
    assert [run.info.run_name for run in trials] == ["trial 0", "trial 1"]
    assert {run.data.tags["mlflow.parentRunId"] for run in trials} == {search.info.run_id}
    best = min(run.data.metrics["wql"] for run in trials)
    assert search.data.metrics["tune/wql"] == best
    assert trials[0].data.params["fit.learning_rate"] != trials[1].data.params["fit.learning_rate"]
    version = Registry(RegistryConfig(name=NAME)).resolve("pretrained")
    assert (version.number, version.run_id) == (1, search.info.run_id)

    again = succeed("tune", *wanted, "tune.n_trials=2").lines[-1]
    assert f"validation wql {best:.4f}" in again
    assert len(client.search_runs(["1"])) == 4, "nothing was trained again"
    succeed("train", "--config", tmp_path / "search" / "best.yaml")
    digests = [Registry(RegistryConfig(name=NAME)).resolve(number).digest for number in (1, 2, 3)]
    assert len(set(digests)) == 1, "the settings that were found give the model that was found"
