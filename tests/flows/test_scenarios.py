"""What-if on the command line: two plans of a covariate beside each other."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from flow import END, HORIZON, NAME, TRAIN, forecast, panel, succeed

MODEL = f"registry.name={NAME}"


@pytest.mark.trains
def test_a_plan_is_compared_with_the_plain_forecasts_and_may_not_change_the_past(store: str, tmp_path: Path) -> None:
    assert store
    rows = panel().filter(pl.col("series_id") < "s04")
    hours = pl.datetime_range(rows["timestamp"].min(), END + pl.duration(hours=HORIZON), "1h", eager=True)
    plan = rows.select("series_id").unique().sort("series_id").join(hours.alias("timestamp").to_frame(), how="cross")
    plan = plan.with_columns(promo=np.random.default_rng(0).integers(0, 2, plan.height).astype(float))
    joined = rows.join(plan, on=["series_id", "timestamp"])
    joined.with_columns(pl.col("target") + 10 * pl.col("promo")).drop("promo").write_parquet(tmp_path / "sales.parquet")
    ahead, first = pl.col("timestamp") > END, pl.col("series_id") == "s01"
    plan.write_parquet(tmp_path / "a.parquet")
    promo = pl.when(ahead & first).then(1.0).otherwise("promo").alias("promo")
    plan.with_columns(promo).write_parquet(tmp_path / "b.parquet")
    plan.with_columns(pl.when(first).then(1.0).otherwise("promo").alias("promo")).write_parquet(tmp_path / "c.parquet")
    plan.with_columns(promo).filter(~ahead | ~first).write_parquet(tmp_path / "d.parquet")

    table = f"data.path={tmp_path / 'sales.parquet'}"
    plans = {name: f"data.known_path={tmp_path / name}.parquet" for name in "abcd"}
    known = ("data.known_covariates=[promo]", "fit.max_steps=60", "fit.learning_rate=0.02", "fit.ema_decay=0.9")
    succeed("train", MODEL, "registry.alias=pretrained", table, plans["a"], *TRAIN, *known)
    score = ("score", MODEL, "registry.alias=pretrained", table, f"output.path={tmp_path / 'scores'}")
    promo_b = (*score, plans["b"], "score.scenario=promo-b")
    assert "has no forecasts from" in forecast(*promo_b).err
    succeed(*score, plans["a"])
    line = succeed(*promo_b).out
    assert ", 1 of 4 series differ, " in line, line[-200:]
    folder = tmp_path / "scores" / "scenarios" / "promo-b"
    (file,) = (folder / "differences").iterdir()
    assert pl.read_parquet(file).filter(pl.col("difference") != 0)["series_id"].unique().to_list() == ["s01"]
    assert "Scenario promo-b" in (folder / "difference.html").read_text(encoding="utf-8")
    listed = succeed("scores", "list", f"scores.path={tmp_path / 'scores'}").out
    assert "scenarios (show.scenario): promo-b" in listed
    shown = succeed("scores", "show", f"scores.path={tmp_path / 'scores'}", "show.scenario=promo-b")
    assert shown.lines[-1].startswith("cutoff 2024-01-18T23:00:00: 48 rows")

    refused = forecast(*score, plans["c"], "score.scenario=promo-c")
    assert refused.code == 3
    assert "inputs at or before it differ: known covariates: 1 series (s01)" in refused.err
    refused = forecast(*score, plans["d"], "score.scenario=promo-d")
    assert refused.code == 3
    assert "12 cells of promo are missing in the 12 steps" in refused.err
    refused = forecast(*score, plans["b"], "score.scenario=b", "output.sink=delta")
    assert refused.code == 2
    assert "score.scenario compares Parquet files" in refused.err
