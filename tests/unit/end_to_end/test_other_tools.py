"""What scoring writes, as pandas, Arrow, Polars, DuckDB and Spark read it, by the code in docs/score.md."""

import re
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest
from polars.testing import assert_frame_equal

import forecast as fc
from forecast.config import ScoreOutput, ScoreSettings
from forecast.data.ingest.loaded import Loaded
from forecast.errors import DataError
from forecast.scoring.job import ScoreJob
from forecast.training.result import FitResult

PAGE = Path(__file__).parents[3] / "docs" / "score.md"
SECTION = PAGE.read_text().partition("## Read by other tools")[2].partition("\n## ")[0]
SNIPPETS = {
    engine: next(code for code in re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL) if word in code)
    for engine, word in {
        "pandas": "import pandas",
        "arrow": "import pyarrow",
        "polars": "import polars",
        "duckdb": "import duckdb",
    }.items()
}
NAMES = {"model": "m", "model_version": "3", "model_digest": "ab12"}


@pytest.fixture(scope="module")
def folder(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cutoffs by one version, one of them by another one, too; the earlier one has rejects."""
    path = tmp_path_factory.mktemp("other")
    settings = ScoreOutput(path=str(path / "scores"))
    last = weekly_loaded.panel.last_index
    for names, back in ((NAMES, 120), (NAMES, 0), (NAMES | {"model_version": "4"}, 0)):
        job = ScoreJob(trained.artifact, weekly_loaded, ScoreSettings(shard_size=5), settings, names)
        job.write(last - back)
        job.write_latest()
    return path


def read(engine: str, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    values: dict[str, Any] = {}
    exec(SNIPPETS[engine].replace("scores/forecasts", f"scores/{kind}"), values)
    return values["frame"]


def as_polars(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pd.DataFrame):
        return pl.from_pandas(frame)
    return frame if isinstance(frame, pl.DataFrame) else pl.DataFrame(pl.from_arrow(frame))


@pytest.mark.parametrize("engine", SNIPPETS)
@pytest.mark.parametrize("kind", ["forecasts", "rejects", "latest"])
def test_every_engine_reads_the_same_rows_with_the_same_types(
    engine: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "duckdb":
        pytest.importorskip("duckdb")
        if kind == "latest":
            monkeypatch.setitem(SNIPPETS, engine, SNIPPETS[engine].replace("/*/*.parquet", "/*.parquet"))
    files = sorted((folder / "scores" / kind).rglob("*.parquet"))
    expected = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
    frame = read(engine, folder, kind, monkeypatch)
    if isinstance(frame, pd.DataFrame):
        assert {str(frame[name].dtype).partition("[")[0] for name in ("timestamp", "cutoff")} == {"datetime64"}
    found = as_polars(frame)
    assert found.columns == expected.columns
    order = [name for name in ("cutoff", "model_version", "series_id", "step") if name in found.columns]
    assert found.schema["cutoff"] == found.schema["timestamp"]
    assert_frame_equal(found.cast(dict(expected.schema)).sort(order), expected.sort(order))
    assert expected.height > 0


def test_no_name_of_a_folder_is_read_as_a_column(folder: Path) -> None:
    """As hive tables are read, which is Spark's rule too: no key=value, and nothing hidden among the files."""
    for kind in ("forecasts", "rejects", "latest"):
        place = folder / "scores" / kind
        hive = pyarrow.dataset.dataset(place, partitioning="hive")
        assert len(hive.files) == len(list(place.rglob("*.parquet")))
        assert hive.schema.names == pa.parquet.read_schema(hive.files[0]).names
        parts = [part for path in place.rglob("*") for part in path.relative_to(place).parts]
        assert not any("=" in part or part.startswith(("_", ".")) for part in parts)


def test_time_zones_are_kept(trained: FitResult, weekly_table: pl.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    import duckdb

    from forecast.config import DataConfig
    from forecast.data.ingest.load import load_panel

    zoned = weekly_table.with_columns(pl.col("timestamp").dt.replace_time_zone("Europe/Berlin"))
    data = DataConfig.model_validate(trained.artifact.data.model_dump() | {"time_zone": "Europe/Berlin"})
    loaded = load_panel(zoned.lazy(), data, 7, trained.artifact.categories)
    artifact = replace(trained.artifact, grid=loaded.panel.grid)
    job = ScoreJob(artifact, loaded, ScoreSettings(), ScoreOutput(path=str(tmp_path / "out")), NAMES)
    job.write(loaded.panel.last_index)
    moment = datetime(2024, 1, 1) + timedelta(days=159)
    frames = [
        fc.read_scores(tmp_path / "out", cutoff=moment),
        fc.read_scores(tmp_path / "out", cutoff=f"{moment.isoformat()}+02:00", latest=True),
        pl.read_parquet(tmp_path / "out/forecasts"),
        pl.from_pandas(pd.read_parquet(tmp_path / "out/forecasts")),
        duckdb.sql(f"select * from read_parquet('{tmp_path}/out/forecasts/*/*.parquet')").pl(),
    ]
    for frame in frames:
        local = frame["cutoff"].dt.convert_time_zone("Europe/Berlin").dt.replace_time_zone(None)
        assert local.unique().to_list() == [moment]
    assert frames[0]["trained_until"].unique().to_list() == [artifact.trained_until_timestamp]
    with pytest.raises(DataError, match="no forecasts from"):
        fc.read_scores(tmp_path / "out", cutoff=f"{moment.isoformat()}+00:00")
