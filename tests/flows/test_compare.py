"""What changed between two nights: new data, another version, a revised history."""

import polars as pl
from flow import NAME, Store, forecast, refuse, succeed

PARTS = ["data", "model", "covariates", "other"]


def changes(store: Store) -> pl.DataFrame:
    rows = pl.read_parquet(store.folder / "changes" / "changes.parquet")
    gap = rows.select((pl.sum_horizontal(PARTS) - pl.col("change")).abs().max()).item()
    assert gap < 1e-9
    return rows


def test_the_change_of_a_night_is_divided_among_data_and_version(promoted: Store) -> None:
    scores = promoted.folder / "scores"
    model = f"registry.name={NAME}"
    nights = {1: "2024-01-18T11:00:00", 2: "2024-01-18T17:00:00"}
    for version, cutoff in nights.items():
        succeed(
            "score",
            model,
            f"registry.alias={version}",
            f"data.path={promoted.table}",
            f"output.path={scores}",
            f"score.cutoff={cutoff}",
        )
    keys = f"before={nights[1]}", f"after={nights[2]}"
    compare = (
        "compare",
        f"data.path={promoted.table}",
        f"scores.path={scores}",
        f"output.path={promoted.folder}/changes",
    )
    done = succeed(*compare)
    assert done.lines[0].startswith(f"{nights[1]} by {NAME} v1 -> {nights[2]} by {NAME} v2: 20 series, 6 common")
    rows = changes(promoted)
    assert rows.height == 20 * 6
    size = rows["mean_before"].abs().mean()
    assert isinstance(size, float)
    assert rows["other"].abs().max() < 1e-4 * size, "the same history gives the same forecasts"
    assert rows["data"].abs().max() > 1e-3 * size
    assert rows["model"].abs().max() > 1e-3 * size
    page = (promoted.folder / "changes" / "compare.html").read_text(encoding="utf-8")
    assert "Revised history or other" in page

    # The second night has read another history of a series than the first.
    revision = pl.when(pl.col("series_id") == "s00").then(pl.col("target") + 3).otherwise("target").alias("target")
    table = promoted.write(pl.read_parquet(promoted.table).with_columns(revision), "revised.parquet")
    score = ("score", model, "registry.alias=2", f"data.path={table}", f"output.path={scores}")
    succeed(*score, f"score.cutoff={nights[2]}")
    succeed("compare", f"data.path={table}", *compare[2:], *(f"compare.{key}" for key in keys))
    other = changes(promoted).group_by("series_id").agg(pl.col("other").abs().max())
    assert other.filter(pl.col("other") > 1e-4 * size)["series_id"].to_list() == ["s00"]
    assert other.filter(series_id="s00")["other"].item() > 1

    assert "exchange them" in forecast(*compare, f"compare.before={nights[2]}", f"compare.after={nights[1]}").err
    assert "neither a timestamp" in refuse(2, *compare, "compare.before=yesterday")
    assert "no forecasts from 2024-01-01" in refuse(3, *compare, "compare.before=2024-01-01")
