"""A fine-tuning in shards on the command line."""

from pathlib import Path

import pytest
from flow import FINETUNE, NAME, Store, forecast, succeed
from mlflow import MlflowClient

from forecast.config import RegistryConfig
from forecast.finetuning import series_tuning
from forecast.tracking.registry import Registry
from pipelines.jobs.ledger import Ledger

pytestmark = pytest.mark.distributed


def counts(store: Store) -> tuple[int, int, int]:
    """Return the numbers of versions, of runs in MLflow, and of entries in the ledger."""
    client = MlflowClient(store.uri, store.uri)
    experiment = client.get_experiment_by_name(NAME)
    assert experiment is not None
    versions = Registry(RegistryConfig(name=NAME, tracking_uri=store.uri)).versions()
    ledger = Ledger(f"sqlite:///{Path('gatecast.db').resolve()}")
    return len(versions), len(client.search_runs([experiment.experiment_id])), len(ledger.entries(every=True))


def test_shards_register_nothing_and_the_commit_one_version_as_the_whole_job(
    fine_tuned: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(series_tuning, "_elements_per_series", lambda *_: series_tuning.MAX_GROUP_ELEMENTS["cpu"] // 6)
    job = (f"registry.name={NAME}", "registry.alias=1", f"data.path={fine_tuned.table}", *FINETUNE)
    shared = (*job, "finetune.checkpoint=parts")
    succeed("finetune", *job)
    before = counts(fine_tuned)
    lines = [succeed("finetune", *shared, f"shard={index}/2").lines[-1] for index in (0, 1)]
    assert "not tried yet: shards 1/2; run these, then all shards once more for the fits" in lines[0]
    assert "not fitted yet: shards 0/2; run these again, then `forecast commit finetune`" in lines[1]
    refused = forecast("commit", "finetune", *shared)
    assert refused.code == 6
    assert "are not fitted: shards 0/2" in refused.err
    done = succeed("finetune", *shared, "shard=0/2").lines[-1]
    assert "all shards are fitted: `forecast commit finetune` with the same settings registers the version" in done
    n_versions, n_runs, n_entries = counts(fine_tuned)
    assert n_versions == before[0]
    succeed("commit", "finetune", *shared)
    assert counts(fine_tuned) == (n_versions + 1, n_runs + 1, n_entries + 1)
    assert (n_runs, n_entries) == (before[1] + 1, before[2] + 1), "of the commit that was refused"
    whole, committed = sorted(
        Registry(RegistryConfig(name=NAME, tracking_uri=fine_tuned.uri)).versions(), key=lambda one: one.number
    )[-2:]
    assert committed.digest == whole.digest
    assert [path.name for path in Path("parts").iterdir()] == [".lock"]


def test_shards_need_a_folder_and_series(fine_tuned: Store) -> None:
    job = (f"registry.name={NAME}", "registry.alias=1", f"data.path={fine_tuned.table}", *FINETUNE)
    done = forecast("finetune", *job, "shard=0/2")
    assert done.code == 2
    assert "finetune.checkpoint: missing; give the folder that all shards write into" in done.err
    done = forecast("finetune", *job, "shard=0/2", "finetune.kind=global", "finetune.checkpoint=parts")
    assert done.code == 2
    assert "finetune.kind: global trains weights that all series share" in done.err
