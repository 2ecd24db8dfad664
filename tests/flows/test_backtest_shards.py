"""A backtest in shards, and its commit, with a real MLflow store."""

import pytest
from flow import BACKTEST, NAME, Store, refuse, succeed
from mlflow import MlflowClient

from forecast.names import BACKTEST_RUN

pytestmark = pytest.mark.distributed


def test_shards_and_a_commit_are_the_whole_job(fine_tuned: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecast.backtesting.plan._WINDOWS", 8)
    client = MlflowClient(fine_tuned.uri)
    model, table = f"registry.name={NAME}", f"data.path={fine_tuned.table}"
    settings, folder = (model, table, *BACKTEST, f"output.path={fine_tuned.folder / 'out'}"), fine_tuned.folder / "out"
    runs, jobs = _n_runs(client), succeed("runs", "list").out
    printed = succeed("backtest", *settings, "shard=1/2").out
    assert f"shard 1/2 of the backtest of {NAME} v2: 3 parts, 3 of them new" in printed
    assert (_n_runs(client), succeed("runs", "list").out) == (runs, jobs)
    assert "2 of 5 parts of the backtest are missing: 0, 1" in refuse(6, "commit", "backtest", *settings)
    succeed("backtest", *settings, "shard=0/2")
    line = succeed("commit", "backtest", *settings).lines[-1]

    run = client.get_run(client.get_model_version(NAME, "2").tags[BACKTEST_RUN])
    assert run.info.run_id in line
    assert run.data.metrics["backtest/fine_tuned/n_windows"] == 40
    whole = succeed("backtest", model, table, *BACKTEST, f"output.path={fine_tuned.folder / 'whole'}").lines[-1]
    assert whole.partition(", run ")[0] == line.partition(", run ")[0]
    for name in ("scores", "forecasts", "summary"):
        assert (folder / f"{name}.parquet").read_bytes() == (folder.parent / f"whole/{name}.parquet").read_bytes()


def _n_runs(client: MlflowClient) -> int:
    return sum(len(client.search_runs([experiment.experiment_id])) for experiment in client.search_experiments())
