"""The schedules in Dagster: a tick and a backfill of its daemon, and what it is told of what others have done."""

import importlib
import json
import math
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
import services
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from flow import END, NAME, Store, panel
from pydantic import SecretStr

import forecast as library
from forecast.config import SchedulerConfig, ScoreConfig, ScoreOutput, load
from forecast.errors import ConfigError
from pipelines.dagster import definitions
from pipelines.jobs.ledger import Ledger
from pipelines.notify import NotifyConfig
from pipelines.scheduling.dagster_checks import CHECKS, judge, stability, summary_of
from pipelines.scheduling.dagster_flow import Flow
from pipelines.scheduling.schedule_file import Schedule
from pipelines.scheduling.scheduler import Scheduler

ASSET = dg.AssetKey("nightly")
HOME = "telemetry: {enabled: false}\nconcurrency: {pools: {default_limit: 1}}\n"


@pytest.fixture
def today() -> datetime:
    """The start of a day that lasts until a test has ended, in UTC."""
    now = datetime.now(UTC).replace(tzinfo=None)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    if midnight - now < timedelta(minutes=5):
        time.sleep((midnight - now).total_seconds())
        return midnight
    return midnight - timedelta(days=1)


@pytest.fixture
def days(today: datetime) -> list[str]:
    return [f"{today - timedelta(days=3 - number):%Y-%m-%d}" for number in range(3)]


def ledger() -> Ledger:
    return Ledger("sqlite:///gatecast.db")


def write(folder: Path, **schedules: dict[str, Any]) -> Path:
    """Write conf/schedule.yaml."""
    (folder / "conf").mkdir(exist_ok=True)
    path = folder / "conf" / "schedule.yaml"
    # JSON is YAML.
    path.write_text(json.dumps({"overrides": [f"registry.name={NAME}"], "schedules": schedules}))
    return path


def nightly(store: Store, today: datetime, **settings: object) -> dict[str, Any]:
    """Return a schedule of the days that are over, with a panel that ends yesterday."""
    shift = today - timedelta(hours=1) - END
    table = store.write(panel().with_columns(pl.col("timestamp") + shift), "live.parquet")
    score = {"flow": "score", "cutoff": "previous_day", "naive": True, "retries": 0}
    return {"cron": "* * * * *", **score, "overrides": [f"data.path={table}", "output.path=scores"], **settings}


def outside(store: Store, monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Score a day of the schedule `nightly` without Dagster."""
    with monkeypatch.context() as job:
        job.setenv("GATECAST_SCHEDULE", "nightly")
        job.setenv("GATECAST_SLOT", f"{day}T23:59:59+00:00")
        store.score(store.folder / "live.parquet", f"score.cutoff={day}T23:59:59", output="scores")


def verdicts(evaluations: Iterable[dg.AssetCheckEvaluation]) -> dict[str, bool]:
    return {evaluation.check_name: evaluation.passed for evaluation in evaluations}


def wait(process: "subprocess.Popen[bytes]", log: Path, happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 400
    while not happened():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def test_the_daemon_runs_what_is_due_and_fills_days_once(
    promoted: Store, monkeypatch: pytest.MonkeyPatch, today: datetime, days: list[str]
) -> None:
    path = write(promoted.folder, nightly=nightly(promoted, today, start=f"{today - timedelta(days=3)}"))
    home, log = promoted.folder / "home", promoted.folder / "log"
    home.mkdir()
    (home / "dagster.yaml").write_text(HOME)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    outside(promoted, monkeypatch, days[0])
    graph = definitions(path).resolve_asset_graph()
    command = [Path(sys.executable).with_name("dagster-daemon"), "run", "-m", "pipelines.dagster"]
    environment = {**os.environ, "PYTHONPATH": str(Path(library.__file__).parents[1])}
    with (
        dg.DagsterInstance.from_config(str(home)) as instance,
        log.open("wb") as file,
        services.running(command, file, env=environment) as daemon,
    ):

        def fill() -> dict[str, bool]:
            """Run a backfill of the days to its end; return how its checks ended."""
            name = uuid.uuid4().hex
            asked = PartitionBackfill.from_asset_partitions(
                name, graph, days, [ASSET], time.time(), {}, instance, False, None, None, None
            )
            instance.add_backfill(asked)
            wait(
                daemon,
                log,
                lambda: (found := instance.get_backfill(name)) and found.status != BulkActionStatus.REQUESTED,
            )
            (run,) = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": name}))
            assert run.is_success, log.read_text()
            kind = dg.DagsterEventType.ASSET_CHECK_EVALUATION
            events = [one.dagster_event for one in instance.all_logs(run.run_id, of_type=kind)]
            return verdicts(event.asset_check_evaluation_data for event in events if event)

        wait(daemon, log, lambda: [run for run in instance.get_runs() if run.is_finished])
        tick = next(run for run in instance.get_runs() if run.is_finished)
        assert tick.tags["dagster/schedule_name"] == "nightly_schedule"
        assert tick.tags["dagster/partition"] == days[-1]
        assert tick.is_success, log.read_text()
        assert fill() == dict.fromkeys(CHECKS, True)
        done = ledger().entries(every=True)
        assert sorted(entry.slot[:10] for entry in done) == days
        assert {entry.status for entry in done} == {"done"}
        manifests = sorted((promoted.folder / "scores" / "manifests").iterdir())
        assert [file.name[7:17] for file in manifests] == days
        assert instance.get_materialized_partitions(ASSET) == set(days)
        event = instance.get_latest_materialization_event(ASSET)
        assert event
        assert event.asset_materialization
        metadata = {name: value.value for name, value in event.asset_materialization.metadata.items()}
        entry = ledger().latest("nightly", f"{event.asset_materialization.partition}T23:59:59+00:00")
        assert entry
        assert metadata.items() >= {"run": entry.id, "mlflow": entry.mlflow}.items()
        assert metadata["output"] == str(promoted.folder / entry.output)
        assert (metadata["series/in"], metadata["series/forecast"], metadata["rows/written"]) == (20, 20, 240)

        (part,) = (promoted.folder / "scores" / "forecasts").glob(f"{days[1]}*/*")
        damaged = pl.when(pl.col("step") == 1).then(float("nan")).otherwise("mean")
        pl.read_parquet(part, hive_partitioning=False).with_columns(mean=damaged).write_parquet(part)
        before = {path: path.stat().st_mtime_ns for path in manifests}
        job = definitions(path).resolve_job_def("nightly_job")
        span = {"dagster/asset_partition_range_start": days[0], "dagster/asset_partition_range_end": days[-1]}
        again = job.execute_in_process(tags=span, instance=instance)
        assert verdicts(again.get_asset_check_evaluations()) == dict.fromkeys(CHECKS, True) | {
            "intact": False,
            "finite": False,
        }
        assert ledger().entries(every=True) == done
        assert {path: path.stat().st_mtime_ns for path in manifests} == before


def test_dagster_is_told_what_was_done_elsewhere(
    promoted: Store, monkeypatch: pytest.MonkeyPatch, today: datetime, days: list[str]
) -> None:
    found = definitions(write(promoted.folder, nightly=nightly(promoted, today)))
    outside(promoted, monkeypatch, days[-1])
    (sensor,) = found.sensors or ()
    with dg.DagsterInstance.ephemeral() as instance:
        context = dg.build_sensor_context(instance)
        (event,) = sensor.evaluate_tick(context).asset_events  # type: ignore[union-attr]
        assert (event.asset_key, event.partition) == (ASSET, days[-1])
        instance.report_runless_asset_event(event)
        assert not sensor.evaluate_tick(dg.build_sensor_context(instance)).asset_events  # type: ignore[union-attr]
        job = found.resolve_job_def("nightly_job")

        def check() -> dict[str, bool]:
            done = job.execute_in_process(partition_key=days[-1], instance=instance)
            return verdicts(done.get_asset_check_evaluations())

        assert check() == dict.fromkeys(CHECKS, True)
        with pytest.raises(dg.DagsterUnknownPartitionError):
            job.execute_in_process(partition_key=f"{today:%Y-%m-%d}", instance=instance)
        manifest = next((promoted.folder / "scores" / "manifests").iterdir())
        content = json.loads(manifest.read_text())
        content["series"] |= {"forecast": 18, "rejected": 1}
        manifest.write_text(json.dumps(content))
        assert check() == dict.fromkeys(CHECKS, True) | {"conservation": False}
        content["series"] |= {"forecast": 18, "rejected": 2}
        content["rows"]["written"] = 18 * content["horizon"]
        manifest.write_text(json.dumps(content))
        assert check() == dict.fromkeys(CHECKS, True) | {"rejects": False}
        manifest.unlink()
        assert check() == dict.fromkeys(CHECKS, False)
    assert len(ledger().entries(every=True)) == 1


def test_a_ledger_that_does_not_answer_stops_a_partition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATECAST_LEDGER", f"sqlite:///{tmp_path}")
    score = {"cron": "0 2 * * *", "flow": "score", "overrides": ["data.path=p", "output.path=o"], "retries": 0}
    job = definitions(write(tmp_path, hourly=score)).resolve_job_def("hourly_job")
    key = job.partitions_def.get_partition_keys()[-1]  # type: ignore[union-attr]
    done = job.execute_in_process(partition_key=key, raise_on_error=False)
    (failure,) = (event.step_failure_data for event in done.all_events if event.is_step_failure)
    assert failure.user_failure_data
    assert "the ledger does not answer" in str(failure.user_failure_data.description)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"cron": "30 2 * * *"}, ["2024-01-01-02:30", "2024-01-02-02:30"]),
        ({"cron": "30 2 * * sun"}, ["2024-01-07-02:30", "2024-01-14-02:30"]),
        ({"cron": "0 * * * *", "start": "2024-10-26"}, ["2024-10-26-00:00", "2024-10-26-01:00"]),
        ({"cron": "0 * * * *", "start": "2024-03-30"}, ["2024-03-30-00:00", "2024-03-30-01:00"]),
        ({"cron": "30 2 * * *", "cutoff": "previous_day"}, ["2023-12-31", "2024-01-01"]),
        ({"cron": "30 2 * * 0-6", "cutoff": "previous_day"}, ["2023-12-31", "2024-01-01"]),
        ({"cron": "30 2 * * mon", "cutoff": "previous_day"}, ["2024-01-01", "2024-01-08"]),
        ({"cron": "30 2 * * sun,wed", "cutoff": "previous_day"}, ["2024-01-03", "2024-01-07"]),
        ({"cron": "5 6,18 1 * *", "cutoff": "previous_day"}, ["2024-01-01", "2024-02-01"]),
        ({"cron": "15 23 31 3,7 *", "cutoff": "previous_day"}, ["2024-03-31", "2024-07-31"]),
    ],
)
def test_partitions_are_the_slots_of_the_scheduler_where_clocks_change(settings: Any, keys: list[str]) -> None:
    schedule = load(Schedule, {"flow": "promote", "time_zone": "Europe/Berlin", "start": "2024-01-01", **settings})
    flow = Flow("any", schedule, Scheduler(SchedulerConfig(), {}, NotifyConfig()))
    assert schedule.start
    days = timedelta(days=3 if schedule.cron.startswith("0") else 360, hours=12)
    until = (schedule.start + days).replace(tzinfo=schedule.zone)
    found = flow.partitions.get_partition_keys(until)
    assert found[:2] == keys
    moments = schedule.moments(schedule.before_start() or until, until)
    cutoffs = list(dict.fromkeys(schedule.cutoff_of(moment).astimezone(UTC) for moment in moments))
    assert [flow.slot(key).cutoff.astimezone(UTC) for key in found] == cutoffs
    if schedule.cutoff == "previous_day" and schedule.days != "* * *":
        assert [flow._key(flow.slot(key).cutoff + timedelta(hours=1)) for key in found] == found


def test_a_check_that_can_not_be_made_is_a_warning_and_fails_no_score(promoted: Store) -> None:
    for hour in (1, 0):
        promoted.score(None, f"score.cutoff={END - timedelta(hours=hour)}", output="scores")
    config = load(ScoreConfig, {"data": {"path": str(promoted.table)}, "output": {"path": "scores"}})
    entry = Ledger("sqlite:///gatecast.db").entries(every=True)[0]
    before, manifest = sorted((promoted.folder / "scores" / "manifests").glob("cutoff=*.json"))
    assert entry.output.endswith(manifest.name)
    verdicts = judge(config, entry)
    assert {name: verdict.passed for name, verdict in verdicts.items()} == dict.fromkeys(CHECKS, True)
    assert "1 cutoff(s) before" in verdicts["drift"].text
    earlier = promoted.folder / "scores" / next(iter(json.loads(before.read_text())["files"]))
    earlier.write_bytes(b"PAR1")  # A part of it has gone.
    verdicts = judge(config, entry)
    assert {name: verdict.passed for name, verdict in verdicts.items()} == dict.fromkeys(CHECKS, True)
    assert "no cutoff before that it can be compared with" in verdicts["drift"].text
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({name: value for name, value in content.items() if name != "series"}))
    verdicts = judge(config, entry)
    doubtful = {name for name, verdict in verdicts.items() if not verdict.is_certain}
    assert doubtful == {"conservation", "rejects"}
    assert verdicts["rejects"].text == "can't be checked: it lacks 'series'"
    assert verdicts["intact"].passed
    summary = summary_of("rejects", [("day", verdicts["rejects"])])
    assert (summary.passed, summary.severity) == (False, dg.AssetCheckSeverity.WARN)
    away = config.model_copy(
        update={"output": ScoreOutput(path="o", sink="sql", table="t", uri=SecretStr("postgresql://me@127.0.0.1:9/db"))}
    )
    assert not judge(away, entry)["intact"].is_certain


def test_a_tick_asks_for_its_own_partition(tmp_path: Path) -> None:
    base = {"flow": "score", "time_zone": "Europe/Berlin", "start": "2024-01-01", "cron": "30 2 * * *"}
    uri = ["data.path=p", "output.sink=sql", "output.uri=postgresql://me:hunter2@db/any"]
    found = definitions(
        write(
            tmp_path,
            moment={**base, "overrides": [*uri, "output.path=o", "output.table=o"]},
            day={**base, "cutoff": "previous_day", "overrides": [*uri, "output.path=q", "output.table=q"]},
        )
    )
    assert "hunter2" not in str([asset.descriptions_by_key for asset in found.assets or ()])  # type: ignore[union-attr]
    repository = found.get_repository_def()
    keys = {"2024-07-02T02:30+02:00": ("2024-07-02-02:30", "2024-07-01"), "2023-07-02T02:30+02:00": (None, None)}
    for at, expected in keys.items():
        with dg.build_schedule_context(None, datetime.fromisoformat(at), repository_def=repository) as context:
            ticks = [
                repository.get_schedule_def(f"{name}_schedule").evaluate_tick(context) for name in ("moment", "day")
            ]
        assert tuple(next((one.partition_key for one in tick.run_requests or ()), None) for tick in ticks) == expected


def test_what_dagster_can_not_have_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promote = {"flow": "promote", "cron": "0 2 * * *"}
    path = write(tmp_path, **{"every second": promote, "seconds": {**promote, "cron": "0 0 2 * * *"}, "good": promote})
    with pytest.raises(ConfigError, match="2 schedule") as caught:
        definitions(path)
    assert "every second: " in str(caught.value)
    assert "seconds: Found invalid cron schedule '0 0 2 * * *'" in str(caught.value)
    with pytest.raises(ConfigError, match=r"nothing\.yaml: .*No such file"):
        definitions(tmp_path / "nothing.yaml")
    monkeypatch.setitem(sys.modules, "dagster", None)
    with pytest.raises(ConfigError, match=r"pip install 'gatecast\[dagster\]'"):
        importlib.reload(sys.modules["pipelines.dagster"])


def test_assets_depend_on_what_makes_their_panel_and_their_model(tmp_path: Path) -> None:
    data = {"overrides": ["data.path=panel"]}
    graph = definitions(
        write(
            tmp_path,
            append={"cron": "0 1 * * *", "flow": "data append", "overrides": ["data.path=new", "output.path=panel"]},
            nightly={"cron": "0 2 * * *", "flow": "score", "overrides": ["data.path=panel", "output.path=scores"]},
            weekly={"cron": "0 3 * * sun", "flow": "finetune", **data},
            judge={"cron": "0 4 * * sun", "flow": "backtest", **data},
            promote={"cron": "0 5 * * sun", "flow": "promote"},
            others={"cron": "0 6 * * sun", "flow": "promote", "overrides": ["registry.name=other"]},
        )
    ).resolve_asset_graph()
    names = ("append", "nightly", "weekly", "judge", "promote", "others")
    parents = {name: {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys} for name in names}
    assert parents == {
        "append": set(),
        "nightly": {"append", "promote"},
        "weekly": {"append"},
        "judge": {"append", "weekly"},
        "promote": {"judge"},
        "others": set(),
    }


def test_the_stability_index_sees_a_shift() -> None:
    values = pl.DataFrame({"mean": [float(number) for number in range(1000)]})
    assert stability(values, values) == pytest.approx(0)
    assert stability(values, pl.concat([values, values * math.nan])) == pytest.approx(0)
    assert stability(values * math.nan, values * math.nan) == pytest.approx(0)
    assert 0.25 < stability(values + 200, values) < stability(values + 500, values)
    # Half of two equal bins moves: p = (0.75, 0.25), q = (0.5, 0.5) but for the half that is added.
    classes = pl.DataFrame({"class": ["a"] * 500 + ["b"] * 500})
    moved = pl.DataFrame({"class": ["a"] * 750 + ["b"] * 250})
    assert stability(moved, classes) == pytest.approx(0.25 * math.log(1.5) + 0.25 * math.log(2), rel=0.01)
    assert stability(pl.DataFrame({"class": ["c"] * 9}), classes) > 1
