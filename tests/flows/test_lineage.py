"""What was made from what: the tree of versions, their differences, series rolled back, exported, deleted."""

import json
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any

import mlflow.pyfunc
import mlflow.store.model_registry.sqlalchemy_store
import mlflow.store.tracking.sqlalchemy_store
import numpy as np
import polars as pl
import pytest
from flow import FINETUNE, NAME, TRAIN, Store, panel, refuse, succeed
from polars.testing import assert_frame_equal

import forecast as library
from forecast.config import RegistryConfig
from forecast.tracking.local_client import LocalClient
from forecast.tracking.registry import Registry
from pipelines.jobs.ledger import Ledger

MODEL = f"registry.name={NAME}"


def registry() -> Registry:
    return Registry(RegistryConfig(name=NAME))


def tuned(number: int) -> list[str]:
    bank = library.load(registry().download(registry().resolve(number))).bank
    assert bank is not None
    return bank.series_id


def test_the_tree_shows_what_was_made_from_what(promoted: Store) -> None:
    data = f"data.path={promoted.table}"
    longer = promoted.write(panel().filter(pl.col("series_id") > "s04"), "other.parquet")
    again = f"data.path={longer}", "registry.alias=2", "finetune.incremental=true"
    succeed("finetune", MODEL, *again, *FINETUNE)
    succeed("finetune", MODEL, data, "registry.alias=1", "finetune.kind=global", "finetune.steps=2", *FINETUNE)
    lines = [line.strip() for line in succeed("models", "show", MODEL).lines if "v" in line]
    heads = [next(line for line in lines if f"v{number} " in line) for number in (1, 2, 3, 4)]
    assert [lines.index(line) for line in heads] == sorted(lines.index(line) for line in heads)
    assert [line.index("v") for line in heads] == [0, 3, 6, 3]
    assert "pretrained " in heads[0]
    assert "fine_tuned (head)" in heads[1]
    assert "fine_tuned (head)" in heads[2]
    assert "pretrained (global)" in heads[3]
    shown = "\n".join(lines)
    versions = {version.number: version for version in registry().versions()}
    assert versions[1].tags["data_digest"][:12] in heads[0]
    assert f" {len(tuned(2))} " in heads[1]
    for text in ("val/loss 0.", "uplift ", "per series ", "backtest/fine_tuned/mase 0."):
        assert text in shown
    one = succeed("models", "show", MODEL, "registry.alias=2").out
    for text in ("children", "v3", "finetune/uplift_interval", "backtest/fine_tuned/mase", "parent_digest"):
        assert text in one


def test_two_versions_are_compared_by_series(promoted: Store) -> None:
    name, *rest = tuned(2)
    succeed("models", "rollback", MODEL, f"rollback.series=[{name}]")
    out = f"output.path={promoted.folder / 'diff'}"
    done = succeed("models", "diff", MODEL, "registry.alias=3", "diff.against=2", out)
    assert done.lines[-1] == (
        f"{NAME} v3 against v2: 0 series fine-tuned in v3 alone, 1 in v2 alone, 0 changed, {len(rest)} the same"
    )
    assert name in done.out
    difference = pl.read_parquet(promoted.folder / "diff" / "diff.parquet")
    assert difference.filter(pl.col("status") != "same")["series_id"].to_list() == [name]
    assert "no alias 'nope'" in refuse(4, "models", "diff", MODEL, "registry.alias=3", "diff.against=nope")


def test_a_series_is_rolled_back_and_this_too(promoted: Store) -> None:
    promoted.score(output="before")
    name, other, *_ = tuned(2)
    message = refuse(2, "models", "rollback", MODEL, f"rollback.series=[{name},nope]")
    assert message.startswith(
        "rollback.series: 1 of 2 have no changes in this version, and forecast with the base: nope"
    )
    done = succeed("models", "rollback", MODEL, f"rollback.series=[{name},{other}]")
    assert "2 series of loads v2 are back at the base in v3, which is now challenger and champion" in done.out
    version = registry().resolve("champion")
    expected = {
        "parent_version": "2",
        "rolled_back": f"{name}, {other}",
        "rolled_back_from": "v2",
        "replaced_version": "2",
        "kind": "fine_tuned",
        "series_tuned": str(len(tuned(2)) - 2),
    }
    assert expected.items() <= version.tags.items()
    assert version.tags["data_digest"] == registry().resolve(2).tags["data_digest"]
    assert registry().read_json(version.run_id, "rolled_back.json") == [name, other]
    promoted.score(output="after")
    sources = dict(promoted.forecasts("after").select("series_id", "source").unique().iter_rows())
    assert sources[name] == sources[other] == "pretrained"
    before, after = (
        promoted.forecasts(output).filter(~pl.col("series_id").is_in([name, other])) for output in ("before", "after")
    )
    np.testing.assert_allclose(before["q50"], after["q50"], rtol=1e-6)
    assert "v3 -> v2" in succeed("models", "rollback", MODEL).out
    back, series = Ledger("sqlite:///gatecast.db").entries(flow="models rollback", limit=2)
    assert (back.model, back.output, back.mlflow) == ("loads v3", "loads v2", "")
    assert (series.model, series.output, series.mlflow) == ("loads v2", "loads v3", version.run_id)
    # Of a version that no alias means, another one is made that none means either.
    succeed("models", "rollback", MODEL, "registry.alias=3", f"rollback.series=[{tuned(3)[0]}]")
    assert registry().resolve(4).aliases == ("challenger",)
    assert registry().resolve("champion").number == 2


def test_a_calibrated_version_is_registered_judged_and_scores_with_its_intervals(promoted: Store) -> None:
    data, out = f"data.path={promoted.table}", promoted.folder / "calibration"
    one = "calibrate.check_windows=0", "calibrate.n_windows=1"
    line = succeed("calibrate", MODEL, data, "registry.alias=champion", *one, f"output.path={out}").lines[-1]
    assert line.startswith(f"{NAME} v3 (fine_tuned): from v2, 1 cutoffs of 20 series, run ")
    assert pl.read_parquet(out / "coverage.parquet").is_empty(), "nothing was left to check it on"
    calibrated = registry().resolve("challenger")
    assert (calibrated.number, calibrated.parent, calibrated.tags["calibrated"]) == (3, 2, "split")
    assert "split)" in succeed("models", "show", MODEL).out
    again = refuse(3, "calibrate", MODEL, data, "registry.alias=3", *one)
    assert "needs at least 1 cutoff(s) that the model has not seen; of 0 after 2024-01-18" in again

    promoted.score(output="before")
    promoted.score(None, "registry.alias=challenger")
    before, after = promoted.forecasts("before"), promoted.forecasts()
    assert_frame_equal(before.select("series_id", "step", "q50"), after.select("series_id", "step", "q50"))
    assert (before["q90"] != after["q90"]).mean() > 0.9  # type: ignore[operator]
    served = mlflow.pyfunc.load_model(f"models:/{NAME}@challenger").predict(panel().to_pandas())
    assert_frame_equal(pl.from_pandas(served).cast(after.schema).drop("model_version"), after.drop("model_version"))

    succeed("backtest", MODEL, data, "backtest.n_windows=1")
    judged = registry().read_json(registry().resolve(3).tags["backtest_run"], "backtest.json")
    assert (judged["version"], judged["champion"]) == (3, 2)


def test_one_series_is_exported_alone(promoted: Store) -> None:
    name, out = tuned(2)[0], promoted.folder / "one"
    succeed("models", "export", MODEL, "registry.alias=champion", f"export.series={name}", f"output.path={out}")
    promoted.score()
    expected = promoted.forecasts().filter(series_id=name)
    alone = library.forecast(library.load(out), panel().filter(series_id=name)).frame
    np.testing.assert_allclose(alone["q50"], expected["q50"], rtol=1e-6)
    message = refuse(2, "models", "export", MODEL, "registry.alias=1", f"export.series={name}", "output.path=x")
    assert "export.series: this version has no changes of series" in message
    assert not (promoted.folder / "x").exists()


def test_a_parent_and_what_an_alias_means_are_not_deleted(promoted: Store) -> None:
    delete = "models", "delete", MODEL
    assert "it is the challenger and the champion" in refuse(4, *delete, "registry.alias=champion")
    succeed("finetune", MODEL, f"data.path={promoted.table}", "registry.alias=1", *FINETUNE)
    client = registry()
    client.delete_alias("pretrained")
    message = refuse(4, *delete, "registry.alias=1")
    assert "loads v1 is not deleted: it is the parent of v2, v3; delete these first" in message
    client.delete_alias("challenger")
    assert "loads v3 deleted" in succeed(*delete, "registry.alias=3").out
    assert "loads v1 deleted" in succeed(*delete, "registry.alias=1", "delete.force=true").out
    assert [version.number for version in client.versions()] == [2]
    assert "v2 (v1 is deleted)" in succeed("models", "show", MODEL).out
    deleted = Ledger("sqlite:///gatecast.db").entries(flow="models delete", every=True)
    assert [(entry.status, entry.model) for entry in deleted] == [
        ("done", "loads v1"),
        ("done", "loads v3"),
        ("failed", "loads v1"),
        ("failed", "loads v2"),
    ]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls of the stores, whichever client makes them: requests, if it were a server."""
    counts: Counter[str] = Counter()
    depth = [0]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def wrapper(*given: Any, **named: Any) -> Any:
            counts[work.__name__] += not depth[0]
            depth[0] += 1
            try:
                return work(*given, **named)
            finally:
                depth[0] -= 1

        return wrapper

    for store in (
        mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore,
        mlflow.store.model_registry.sqlalchemy_store.SqlAlchemyStore,
        LocalClient,
    ):
        for name, work in vars(store).items():
            if callable(work) and not name.startswith(("_", "log_artifact")):
                monkeypatch.setattr(store, name, counted(work))
    return counts


@pytest.mark.parametrize("n_series", [4, 20])
def test_calls_of_mlflow_do_not_grow_with_the_series(
    fine_tuned: Store, calls: Counter[str], n_series: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 20 of a whole fine-tuning, and of loading what it has registered into an empty cache."""
    table = fine_tuned.write(panel().filter(pl.col("series_id").is_in(panel()["series_id"].unique().sort()[:n_series])))
    before = len(registry().versions())
    calls.clear()
    succeed("finetune", MODEL, f"data.path={table}", "registry.alias=1", *FINETUNE)
    assert 10 < calls.total() <= 20, calls
    assert len(registry().versions()) == before + 1
    calls.clear()
    monkeypatch.setenv("GATECAST_CACHE", str(fine_tuned.folder / "empty"))
    version = registry().resolve("challenger")
    registry().download(version)
    assert 1 < calls.total() <= 20, calls


def test_a_student_is_registered_beside_its_teacher_and_exported_in_8_bits(promoted: Store) -> None:
    data, out = f"data.path={promoted.table}", promoted.folder / "distilled"
    fit = [word for word in TRAIN if word.startswith("fit.")]
    small = "distil.hidden_size=4", "distil.n_windows=2"
    line = succeed("distil", MODEL, data, *small, *fit, f"output.path={out}").lines[-1]
    assert line.startswith(f"{NAME} v3 (pretrained): from v2, MASE ")
    assert pl.read_parquet(out / "comparison.parquet")["model"].to_list() == ["teacher", "student"]
    student = registry().resolve("challenger")
    assert (student.number, student.parent, student.tags["distilled"]) == (3, 2, "4")
    succeed("backtest", MODEL, data, "backtest.n_windows=2")

    export = "models", "export", MODEL, "registry.alias=challenger", "export.format=onnx_int8"
    line = succeed(*export, data, f"output.path={out / 'int8'}").lines[-1]
    assert "quantiles off by" in line
    quantised = json.loads((out / "int8" / "onnx.json").read_text())["quantised"]
    assert quantised["windows"] == 20
    assert f"WQL {quantised['wql']:.4f} (float {quantised['float_wql']:.4f}) on the last horizon" in line
    message = refuse(2, *export[:-1], "export.format=onnx", data, f"output.path={out / 'float'}")
    assert message.startswith("data: a table is what 8 bits are judged on")
