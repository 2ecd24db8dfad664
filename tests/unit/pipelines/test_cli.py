import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forecast import errors
from forecast.config import BundleScoreConfig, RunsConfig
from forecast.tracking.store import connect
from pipelines import cli
from pipelines.jobs import command_line
from pipelines.verbs import VERBS

HEAVY = {"lightning_fabric", "mlflow", "pandas", "pytorch_lightning", "torch"}


def imported(*arguments: str, says: str = "usage: forecast", folder: Path | None = None) -> set[str]:
    """Return the top-level modules that a `forecast` command imports."""
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert says in done.stdout + done.stderr
    return set(re.findall(r"\|\s+(\w+)$", done.stderr, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def local_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a registry in its default place that holds a model."""
    folder = tmp_path_factory.mktemp("registry")
    client: Any = connect(f"sqlite:///{folder / 'mlflow.db'}")[1]
    client.create_experiment("loads", f"{folder.as_uri()}/mlruns")
    client.create_registered_model("loads")
    client.create_model_version("loads", f"{folder.as_uri()}/v1", "", {"digest": "ab12cd34", "kind": "pretrained"})
    return folder


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["runs", "list"], "no runs"),
        (["models", "list", "registry.name=loads"], "ab12cd34"),
        (["models", "show", "registry.name=loads", "registry.alias=1"], "ab12cd34"),
    ],
)
def test_a_list_imports_no_large_package(words: list[str], text: str, local_store: Path) -> None:
    modules = imported(*words, says=text, folder=local_store)
    assert "forecast" in modules
    assert not modules & {*HEAVY, "hydra", "polars", "sqlalchemy"}


def test_a_model_of_a_local_registry_is_read_and_its_run_logged_without_mlflow(local_store: Path) -> None:
    code = """
import sys
from pathlib import Path
from forecast.config import ModelsConfig, RegistryConfig, load
from forecast.tracking.registry import Registry
registry = Registry(RegistryConfig(name="loads"))
version = registry.resolve("1")
with registry.run("score", load(ModelsConfig, {"registry": {"name": "loads"}}), {"version": "1"}) as run:
    run.dataset("panel", digest="ab12", source="panel.parquet", rows=1, series=1, context="scoring", version=version)
    run.label(version, ["2024-01-01T00:00:00"])
    run.metrics({"score/rows": 1.0}, tags={"rows": 1})
    run.json([], "manifests.json")
print(sorted({"mlflow", "sqlalchemy", "pandas"} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=local_store, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_imports_nothing_that_takes_time() -> None:
    modules = imported("--help")
    assert "forecast" in modules
    assert not modules & {*HEAVY, "hydra", "numpy", "polars", "pydantic"}


def run_all(commands: dict[str, list[str]], folders: Path) -> dict[str, tuple[str, set[str]]]:
    """Run commands one after the other in one process, each in a folder of its own.

    Returns what each printed, and the heavy modules that were imported until it ended.
    """
    code = """
import contextlib, io, json, os, sys
from pipelines import cli
commands, folders, heavy = json.loads(sys.argv[1])
for name, words in commands.items():
    os.makedirs(os.path.join(folders, name))
    os.chdir(os.path.join(folders, name))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed), contextlib.suppress(SystemExit):
        cli.main(words)
    print(json.dumps([name, printed.getvalue(), [module for module in heavy if module in sys.modules]]))
"""
    command = [sys.executable, "-c", code, json.dumps([commands, str(folders), sorted(HEAVY)])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: (text, set(modules)) for name, text, modules in map(json.loads, done.stdout.splitlines())}


def test_help_of_a_verb_does_not_wait_for_torch_or_mlflow(tmp_path: Path) -> None:
    ran = run_all({verb: [verb, "--help"] for verb in VERBS}, tmp_path)
    assert list(ran) == list(VERBS)
    assert not {verb for verb, (text, modules) in ran.items() if modules or "usage: forecast" not in text}


TRAINING = ["data.freq=1h", "window.horizon=24"]
READING = {
    ("train",): TRAINING,
    ("tune",): [*TRAINING, "output.path=trials"],
    ("finetune",): [],
    ("backtest",): [],
    ("calibrate",): [],
    ("explain",): ["explain.series=a"],
    ("score",): ["output.path=scores"],
    ("data", "prepare"): [*TRAINING, "output.path=panel"],
}


def test_a_wrong_path_is_reported_before_torch_and_mlflow_are_imported(tmp_path: Path) -> None:
    commands = {"-".join(verb): [*verb, *READING[verb], "data.path=nowhere.parquet"] for verb in READING}
    ran = run_all(commands, tmp_path)
    assert list(ran) == list(commands)
    for name, (text, modules) in ran.items():
        assert "data.path=nowhere.parquet: no such file or folder" in text, name
        assert not modules, name
        # The job is on record, as failed.
        assert {path.name for path in (tmp_path / name).iterdir()} == {"gatecast.db"}


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    printed = capsys.readouterr().out
    assert all(re.search(rf"^  {verb} ", printed, flags=re.MULTILINE) for verb in VERBS)


def test_the_verbs_grow_on_purpose() -> None:
    assert list(VERBS) == [
        "quickstart",
        "train",
        "pretrain",
        "tune",
        "finetune",
        "backtest",
        "calibrate",
        "distil",
        "explain",
        "promote",
        "refresh",
        "score",
        "commit",
        "scores",
        "compare",
        "reconcile",
        "monitor",
        "retain",
        "report",
        "schedule",
        "runs",
        "models",
        "server",
        "ui",
        "data",
        "replay",
        "demo",
    ]


def test_an_unknown_verb_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    assert capsys.readouterr().err == "error: unknown verb 'trian'; did you mean train?\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.ArtifactError("x"), 4),
        (errors.RegistryError("x"), 4),
        (errors.GateRefused("x"), 5),
        (errors.OutputError("x"), 6),
        (errors.ThresholdBreached("x"), 8),
        (errors.RolledBack("x"), 9),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_error_has_its_exit_code_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(_arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "function_of", lambda _verb: fail)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err in ("error: x\n", "interrupted\n")


def test_a_defect_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "function_of", lambda _verb: lambda arguments: arguments[99])
    with pytest.raises(IndexError):
        cli.main(["train"])


def test_a_config_mistake_ends_a_real_command_with_its_exit_code() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "models", "list", "registry.nam=x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "error: 1 mistake in the config:\n  registry.nam: unknown key; did you mean registry.name?\n"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["runs.limit=7", "runs.every=true", "runs.status=failed", "runs.flow=007"],
        ["runs.flow=null", "runs.dataset=a b, c=d", "runs.flow= train"],
    ],
)
def test_simple_settings_are_composed_as_by_hydra(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    composed = command_line.compose("runs list", overrides, kind=RunsConfig)
    monkeypatch.setattr(command_line, "_plain", lambda *_: None)
    assert composed == command_line.compose("runs list", overrides, kind=RunsConfig)


@pytest.mark.parametrize(
    "override",
    [
        *("output.min=-0.5", "output.max=0", "output.min=12.25", "output.min=null", "score.max_age=90d"),
        *("score.max_age=none", "score.cutoffs=2024-01-01..2024-01-05/1d", "score.cutoff=2024-01-01T05:00:00"),
        *("output.sink=delta", "score.missing_known=carry_forward", "output.latest=false", "score.horizon=3"),
    ],
)
def test_settings_of_bundles_need_no_hydra(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["bundle=b", "data.path=x", "output.path=y", override]
    plain = command_line._plain("score bundle", overrides, BundleScoreConfig)
    assert plain is not None
    monkeypatch.setattr(command_line, "_plain", lambda *_: None)
    assert plain == command_line.compose("score bundle", overrides, kind=BundleScoreConfig)


@pytest.mark.parametrize("override", ["output.latest=TRUE", "output.min=1e3", "score.horizon=Null", "output.min=.5"])
def test_other_spellings_of_a_value_are_left_to_hydra(override: str) -> None:
    assert command_line._plain("score bundle", ["bundle=b", override], BundleScoreConfig) is None


def test_without_hydra_other_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "is_score_only", lambda: True)
    with pytest.raises(errors.ConfigError, match=r"^score\.cutoffs=\[a,b\]: gatecast-score takes KEY=VALUE"):
        command_line.compose("score bundle", ["bundle=b", "score.cutoffs=[a,b]"], kind=BundleScoreConfig)
    with pytest.raises(errors.ConfigError, match=r"data\.paht: unknown key; did you mean data\.path\?"):
        command_line.verb_config(BundleScoreConfig, "score bundle", ["bundle=b", "data.paht=x", "output.path=y"])
