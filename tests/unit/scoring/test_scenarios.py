"""Forecasts with other known covariates beside the plain ones: what may differ, and what that changes."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from folders import contents

import forecast as fc
from forecast.config import JobShare, ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.data.panel import Panel
from forecast.engines.engine import Engine
from forecast.engines.processes import Processes
from forecast.errors import ConfigError, DataError
from forecast.reports.scenario_page import scenario_page
from forecast.scoring.differences import write_difference
from forecast.scoring.job import ScoreJob
from forecast.scoring.parts import Output
from forecast.scoring.scenarios import Scenario, changes, scenarios_in
from forecast.training.result import FitResult

NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}
CUTOFF = datetime(2024, 1, 1) + timedelta(days=159)
COLUMNS: dict[str, Any] = {
    "past_covariates": ["rain"],
    "known_covariates": ["promo"],
    "static_covariates": ["city", "size"],
}


@pytest.fixture(scope="module")
def plan(weekly_table: pl.DataFrame, loaded: Callable[..., Loaded]) -> Callable[..., Loaded]:
    """Reads the weekly table with a week of promo after its end, 0 except for `promo` by series; `past` changes it."""

    def make(past: pl.Expr | None = None, n_steps: int = 7, **promo: float) -> Loaded:
        ids = weekly_table["series_id"].unique().sort().to_list()
        rows = [
            {"series_id": name, "timestamp": CUTOFF + timedelta(days=step), "promo": promo.get(name, 0.0)}
            for name in ids
            for step in range(1, (n_steps if name == "s02" else 7) + 1)
        ]
        table = weekly_table if past is None else weekly_table.with_columns(past)
        ahead = pl.DataFrame(rows, schema_overrides={"timestamp": pl.Datetime("us")})
        return loaded(pl.concat([table, ahead], how="diagonal"), 7, **COLUMNS)

    return make


Plan = Callable[..., Loaded]


def job(
    trained: FitResult,
    loaded: Loaded,
    folder: Path,
    scenario: str | None = None,
    base: Panel | None = None,
    **more: Any,
) -> tuple[ScoreJob, Scenario | None]:
    output = ScoreOutput.model_validate({"path": str(folder), **more.pop("output", {})})
    engine: Engine | None = more.pop("engine", None)
    settings = ScoreSettings.model_validate({"shard_size": 3, "runtime": "torch"} | more)
    given = None if scenario is None else Scenario(scenario, output, trained.artifact, loaded, lambda _: base)
    output = given.output if given else output
    return ScoreJob(trained.artifact, loaded, settings, output, NAMES, scenario=given, engine=engine), given


def write(trained: FitResult, loaded: Loaded, folder: Path, scenario: str | None = None, **more: Any) -> Output:
    return job(trained, loaded, folder, scenario, **more)[0].write(loaded.panel.grid.floor(CUTOFF))


def test_a_scenario_changes_nothing_but_the_series_of_its_plan(trained: FitResult, plan: Plan, tmp_path: Path) -> None:
    plain = write(trained, plan(), tmp_path)
    before = contents(tmp_path)
    scenario_job, scenario = job(trained, plan(s01=1.0, s05=1.0), tmp_path, "promo")
    assert scenario is not None
    output = scenario_job.write(plan().panel.grid.floor(CUTOFF))
    after = contents(tmp_path)
    assert {name: digest for name, digest in after.items() if not name.startswith("scenarios/")} == before
    assert (output.content["scenario"], output.content["base_key"]) == ("promo", plain.content["key"])
    assert output.content["past"] == plain.content["past"]
    assert output.content["data_digest"] != plain.content["data_digest"]

    result = write_difference(scenario, output.content)
    rows = pl.read_parquet(result.file)
    expected = {
        name: fc.read_scores(tmp_path, scenario=name).sort("series_id", "step")["mean"] for name in (None, "promo")
    }
    assert rows["mean_base"].equals(expected[None].alias("mean_base"))
    assert rows["mean_scenario"].equals(expected["promo"].alias("mean_scenario"))
    assert rows["difference"].equals((expected["promo"] - expected[None]).alias("difference"))
    np.testing.assert_allclose(rows["relative"] * rows["mean_base"].abs(), rows["difference"], rtol=1e-6)
    changed = rows.filter(pl.col("difference") != 0)
    assert set(changed["series_id"]) == {"s01", "s05"}
    assert result.n_changed == 2
    assert changed["difference"].mean() > 1, "a promo adds 8 to the target"
    assert result.by_step["difference"].sum() == pytest.approx(rows["difference"].sum(), rel=1e-5)
    assert set(result.largest["series_id"].head(2)) == {"s01", "s05"}
    page = scenario_page("promo", result, output.content)
    assert "2 of 8" in page
    assert "s05" in page
    assert scenarios_in(tmp_path) == ["promo"]
    assert fc.read_scores(tmp_path, scenario="promo")["scenario"].unique().to_list() == ["promo"]
    with pytest.raises(DataError, match="no scenario sale; there are: promo"):
        fc.read_scores(tmp_path, scenario="sale")


def test_a_scenario_is_written_again_only_for_another_plan_or_other_plain_forecasts(
    trained: FitResult, plan: Plan, tmp_path: Path
) -> None:
    write(trained, plan(), tmp_path)
    assert not write(trained, plan(s01=1.0), tmp_path, "promo").was_complete
    assert write(trained, plan(s01=1.0), tmp_path, "promo").was_complete
    assert not write(trained, plan(s02=1.0), tmp_path, "promo").was_complete
    write(trained, plan(s03=1.0), tmp_path)
    assert not write(trained, plan(s02=1.0), tmp_path, "promo").was_complete


def test_shares_and_processes_write_the_same_files(trained: FitResult, plan: Plan, tmp_path: Path) -> None:
    cutoff = plan().panel.grid.floor(CUTOFF)
    files = []
    for name in ("here", "shares"):
        write(trained, plan(), tmp_path / name)
        scenario_job, _ = job(trained, plan(s01=1.0), tmp_path / name, "promo")
        if name == "shares":
            for index in (0, 1):
                scenario_job.write_share(cutoff, JobShare(index, 2))
        files.append(scenario_job.write(cutoff, commit=name == "shares").content["files"])
    assert files[0] == files[1]


@pytest.mark.distributed
def test_workers_find_the_same_past(trained: FitResult, plan: Plan, tmp_path: Path) -> None:
    with Processes(1) as engine:
        plain = write(trained, plan(), tmp_path, engine=engine)
        assert write(trained, plan(s01=1.0), tmp_path, "promo").content["past"] == plain.content["past"]


PASTS = {
    "known covariates": pl.when(pl.col("series_id") == "s04")
    .then(1 - pl.col("promo"))
    .otherwise("promo")
    .alias("promo"),
    "target": pl.when(pl.col("series_id") == "s04").then(pl.col("target") + 1).otherwise("target").alias("target"),
    "past covariates": pl.when(pl.col("series_id") == "s04").then(pl.col("rain") + 1).otherwise("rain").alias("rain"),
    "static covariates": pl.when(pl.col("series_id") == "s04").then(99.0).otherwise("size").alias("size"),
}


@pytest.mark.parametrize("kind", PASTS)
def test_another_past_is_refused_with_the_series_and_the_input(
    trained: FitResult, plan: Plan, tmp_path: Path, kind: str
) -> None:
    write(trained, plan(), tmp_path)
    before = contents(tmp_path)
    other = plan(PASTS[kind], s01=1.0)
    with pytest.raises(DataError, match=rf"have another past: .*: {kind}: 1 series \(s04\)$"):
        write(trained, other, tmp_path, "promo", base=plan().panel)
    with pytest.raises(DataError, match="among the series s03 to s05; their tables can't be read as they were"):
        write(trained, other, tmp_path, "promo")
    assert contents(tmp_path) == before


def test_series_that_only_one_panel_has_are_named(plan: Plan) -> None:
    panel = plan().panel
    cutoff = panel.grid.floor(CUTOFF)
    assert changes(panel, panel, cutoff) == []
    assert changes(panel, panel.rows(1, 7), cutoff) == [("only in the forecasts", ["s00", "s07"])]
    assert changes(panel.rows(0, 7), panel, cutoff) == [("only in the scenario", ["s07"])]


def test_the_past_does_not_depend_on_the_plan_and_all_else_is_in_it(plan: Plan) -> None:
    plain, promo = plan().panel, plan(s01=1.0).panel
    cutoff = plain.grid.floor(CUTOFF)
    (past, whole), (other_past, other_whole) = (panel.visible_digests(cutoff, 7) for panel in (plain, promo))
    assert past == other_past == plain.visible_digest(cutoff, 0)
    assert whole == plain.visible_digest(cutoff, 7) != other_whole
    assert promo.visible_digests(cutoff + 1, 6)[0] != plain.visible_digests(cutoff + 1, 6)[0]
    without = replace(plain, known=plain.known[:0])
    assert len(set(without.visible_digests(cutoff, 7))) == 1


def test_rows_of_the_plan_that_are_missing_are_counted(trained: FitResult, plan: Plan, tmp_path: Path) -> None:
    write(trained, plan(), tmp_path)
    with pytest.raises(DataError, match=r"3 cells of promo are missing in the 7 steps .* in 1 series: s02"):
        write(trained, plan(n_steps=4, s01=1.0), tmp_path, "promo")


def test_plain_forecasts_that_are_absent_or_of_other_settings_are_named(
    trained: FitResult, plan: Plan, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no forecasts from 2024-06-08T00:00:00 by m v3 to compare with; write them"):
        write(trained, plan(s01=1.0), tmp_path, "promo")
    manifest = write(trained, plan(), tmp_path).manifest
    with pytest.raises(DataError, match=r"were written with other settings \(output.sink, min"):
        write(trained, plan(s01=1.0), tmp_path, "promo", output={"min": 0.0})
    content = json.loads(manifest.read_text())
    del content["past"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"does not record their past; write them again with score\.force=true"):
        write(trained, plan(s01=1.0), tmp_path, "promo")
    assert not scenarios_in(tmp_path)


def test_a_model_without_known_covariates_has_no_scenario(
    trained: FitResult, loaded: Callable[..., Loaded], weekly_table: pl.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no known covariates"):
        Scenario("promo", ScoreOutput(path=str(tmp_path)), trained.artifact, loaded(weekly_table, 7))
    for name in ("", "../x", "a/b", ".hidden", "x" * 65):
        with pytest.raises(ValueError, match="scenario"):
            ScoreSettings.model_validate({"scenario": name})
    with pytest.raises(ValueError, match="scenario does not go with state and shadow"):
        ScoreSettings.model_validate({"scenario": "promo", "state": "state"})
