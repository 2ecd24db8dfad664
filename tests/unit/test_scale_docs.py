"""The recipes of docs/scale.md: their command lines, run with the environment of each scheduler, cover every share."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from forecast.config import ScoreConfig
from pipelines.jobs.command_line import verb_settings

TEXT = (Path(__file__).parents[2] / "docs/scale.md").read_text(encoding="utf-8")
SHARES = [f"{index}/16" for index in range(16)]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, flags=re.M | re.S)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Run a command with a `forecast` that writes down its arguments, and return those of all calls."""
    stub = tmp_path / "bin" / "forecast"
    stub.parent.mkdir()
    stub.write_text(
        f"#!{sys.executable}\nimport sys\n"
        f"print('\\t'.join(sys.argv[1:]), file=open({str(tmp_path / 'calls')!r}, 'a'))\n"
    )
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(stub.parent), os.environ["PATH"]]))

    def run(*command: str, **environment: str) -> list[list[str]]:
        subprocess.run(command, cwd=tmp_path, env={**os.environ, **environment}, check=True)
        return [line.split("\t") for line in (tmp_path / "calls").read_text().splitlines()]

    return run


def check(calls: list[list[str]]) -> None:
    """All shares, then the commit, with the same settings."""
    *shares, commit = calls
    assert commit[:2] == ["commit", "score"]
    assert all(words[0] == "score" for words in shares)
    settings = [verb_settings(ScoreConfig, "score", words[1:])[0] for words in shares]
    assert sorted(str(config.shard) for config in settings) == sorted(SHARES)
    committed = verb_settings(ScoreConfig, "score", [*commit[2:], "shard=commit"])[0]
    names = ("registry", "data", "score", "output")
    assert all(getattr(config, name) == getattr(committed, name) for config in settings for name in names)


def test_kubernetes(run: Any) -> None:
    shares, commit = (job["spec"] for job in yaml.safe_load_all(blocks("yaml")[0]))
    assert shares["completions"] == 16
    for spec, numbers in ((shares, range(16)), (commit, [0])):
        (container,) = spec["template"]["spec"]["containers"]
        for number in numbers:
            calls = run(*container["command"], *container["args"], JOB_COMPLETION_INDEX=str(number))
    check(calls)


def test_slurm(run: Any, tmp_path: Path) -> None:
    for script, numbers in zip(blocks("bash")[:2], (range(16), [0]), strict=True):
        (tmp_path / "script").write_text(script)
        for number in numbers:
            calls = run("bash", "script", SLURM_ARRAY_TASK_ID=str(number), SLURM_CPUS_PER_TASK="8")
    assert "#SBATCH --array=0-15\n" in blocks("bash")[0]
    check(calls)


def test_xargs(run: Any) -> None:
    check(run("bash", "-c", blocks("bash")[2]))


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make(run: Any, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text(blocks("make")[0])
    check(run("make", "-j", "4", "commit"))


def test_spark(run: Any, tmp_path: Path) -> None:
    """With a session that calls the function of `mapInArrow` here."""
    stub = tmp_path / "pyspark" / "sql.py"
    stub.parent.mkdir()
    (stub.parent / "__init__.py").touch()
    stub.write_text(
        "import pyarrow\n"
        "class SparkSession:\n"
        "    class builder:\n"
        "        getOrCreate = staticmethod(lambda: SparkSession())\n"
        "    def range(self, first, end, step, numPartitions):\n"
        "        self.batches = [pyarrow.record_batch({'id': [index]}) for index in range(first, end, step)]\n"
        "        return self\n"
        "    def mapInArrow(self, function, schema):\n"
        "        self.rows = sum(batch.num_rows for batch in function(iter(self.batches)))\n"
        "        return self\n"
        "    def count(self):\n"
        "        return self.rows\n"
    )
    (tmp_path / "job.py").write_text(blocks("python")[0])
    check(run(sys.executable, "job.py", PYTHONPATH=str(tmp_path)))
