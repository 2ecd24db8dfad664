"""Random values for every setting of every verb: each ends with an exit code and a reason, before any work."""

import random
import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from flow import forecast
from pydantic.fields import FieldInfo

from forecast.config import fields, group_of
from pipelines.verbs import JOBS, config_of

TEXTS = [
    "",
    "null",
    "true",
    "3.10",
    "007",
    "-1",
    "0",
    "1e400",
    "nan",
    "-inf",
    "99999999999999999999",
    "2024-01-31",
    "20240131",
    "9999-12-31T23:59:59",
    "0001-01-01",
    "12:30",
    "[]",
    "[1,2",
    "[a,,b]",
    "[[a],[b]]",
    "['a,b']",
    "{a: 1}",
    "{1: }",
    "{24: 3, 7: x}",
    "${",
    "${oc.env:NO_SUCH_NAME}",
    "${data.path}",
    "${data.nowhere}",
    "a${b}",
    "'",
    "it's",
    '"',
    "\\",
    "a,b",
    "a=b",
    "???",
    "größe",
    "a\x00b",
    "a\nb",
    "x" * 300,
    "../..",
    "/dev/null/below",
    "/proc/below",
    "sqlite:///nowhere/below/file.db",
    "nodriver://host/db",
    "2024-01-01..2023-01-01/1d",
    "2024-01-01..2024-01-03/1d",
    "(1)",
    "--help",
]
# What stays as it is, of a verb that would work for hours on settings that are right: it needs no table.
FIXED = {"pretrain": {"output.path": "/dev/null/below"}}
CALLS = 6
"""Of each verb, with new values for a sixth of its settings each."""


def value_of(field: FieldInfo, rng: random.Random) -> str:
    """Return a text for a setting: half of the time one of its own kind."""
    if rng.random() < 0.5:
        return rng.choice(TEXTS)
    choices: list[Any] = [field.default] if not field.is_required() else []
    for annotation in (field.annotation, *get_args(field.annotation)):
        if get_origin(annotation) is Literal:
            choices += get_args(annotation)
        elif annotation in (int, float):
            choices += [0, 1, 2, 7, 0.5, 10**6]
        elif annotation is bool:
            choices += ["true", "false"]
        elif get_origin(annotation) is tuple:
            choices += ["[1,2]", "[a,b]", "[0.1,0.5,0.9]"]
    chosen = rng.choice(choices or ["a"])
    return "null" if chosen is None else f"[{','.join(map(str, chosen))}]" if isinstance(chosen, tuple) else str(chosen)


@pytest.mark.parametrize("verb", JOBS)
def test_whatever_the_settings_are_a_verb_ends_with_a_reason(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GATECAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("GATECAST_LEDGER", raising=False)
    rng = random.Random(verb)
    settings = [(path, field) for path, field in fields(config_of(verb)) if not group_of(field)]
    rng.shuffle(settings)
    needed = {path: "missing.parquet" for path, field in settings if path.endswith(".path") or field.is_required()}
    for call in range(CALLS):
        # The first call has all of its settings wrong or right, the others one of a sixth alone.
        drawn = settings[call::CALLS] if call % 2 else settings[call : call + 1]
        words = {**needed, "window.horizon": "3"} if "window.horizon" in needed else dict(needed)
        words |= {path: value_of(field, rng) for path, field in drawn} | FIXED.get(verb, {})
        arguments = [*verb.split(), *(f"{path}={value}" for path, value in words.items())]
        done = forecast(*arguments)
        assert done.code in (0, 2, 3, 4, 5, 6, 7), (arguments, done)
        if done.code:
            reason = re.search(r"(?m)^error: \S.*", done.err)
            assert reason is not None, (arguments, done.err)
            assert "Traceback" not in done.err, (arguments, done.err)
