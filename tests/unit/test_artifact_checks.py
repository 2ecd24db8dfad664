"""Artifacts whose hashes are right and whose content is not: each one is an ArtifactError."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from forecast.artifact import Artifact, is_intact, load
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ArtifactError
from forecast.models.adapters.bank import AdapterBank, head_feature_count
from forecast.models.postprocess.conformal import Calibration
from forecast.prediction.from_table import forecast
from forecast.training.result import FitResult

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def saved(trained: FitResult, weekly_loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with all that one may have: changes of series, calibration, coupling of steps."""
    shape = trained.artifact.network.shape
    features = head_feature_count(shape, trained.artifact.network.encoder.hidden_size)
    names = weekly_loaded.panel.series_id[:2].tolist()
    changes = {"weight": torch.zeros(2, features, shape.horizon), "width": torch.ones(2)}
    levels = trained.artifact.model.quantile_levels
    calibration = Calibration(
        levels, torch.zeros(shape.horizon, dtype=torch.long), torch.zeros(3, 1, len(levels)), names
    )
    artifact = trained.artifact.with_bank(AdapterBank("head", names, changes), trained_until=100, parent_digest="ab12")
    folder = tmp_path_factory.mktemp("saved")
    artifact.with_calibration(calibration, trained_until=100).save(folder)
    assert len(list(folder.iterdir())) >= 7
    return folder


def seal(folder: Path) -> None:
    """Make the hashes of the manifest those of the files."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def changed(saved: Path, folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    """Return a copy with a changed file, whose manifest is right."""
    shutil.copytree(saved, folder)
    path = folder / name
    if name.endswith(".json"):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
    else:
        tensors = safetensors.torch.load_file(path)
        change(tensors)
        safetensors.torch.save_file({key: values.contiguous() for key, values in tensors.items()}, path)
    seal(folder)
    return folder


def fill(value: float) -> Callable[[Tensors], None]:
    """Return what sets one number of each tensor."""

    def change(tensors: Tensors) -> None:
        for values in tensors.values():
            if values.is_floating_point():
                values.view(-1)[:1].fill_(value)

    return change


def drop(tensors: dict[str, Any]) -> None:
    tensors.pop(sorted(tensors)[-1])


def halve(tensors: Tensors) -> None:
    for name, values in list(tensors.items()):
        tensors[name] = values[: len(values) // 2] if values.ndim else values[None]


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return what sets a value in JSON; None removes it."""

    def change(content: dict[str, Any]) -> None:
        for name in path[:-1]:
            content = content[name]
        if value is None:
            content.pop(path[-1])
        else:
            content[path[-1]] = value

    return change


WEIGHTS, BANK, SHIFTS = "model.safetensors", "bank.safetensors", "calibration.safetensors"
CASES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    **{
        f"{name} {value}": (name, fill(value), "not finite")
        for name in (WEIGHTS, BANK, SHIFTS)
        for value in (float("nan"), float("inf"))
    },
    **{f"{name} lacks one": (name, drop, "") for name in (WEIGHTS, BANK, SHIFTS)},
    **{f"{name} cut": (name, halve, "") for name in (WEIGHTS, BANK, SHIFTS)},
    "a tensor too many": (WEIGHTS, put("extra", value=torch.ones(3)), "extra"),
    "a setting of a newer version": ("config.json", put("model", "new_setting", value=1), "new_setting"),
    **{f"no {name}": ("config.json", put(name, value=None), name) for name in ("grid", "window", "data", "shape")},
    **{f"no {name}": ("config.json", put(name, value=None), name) for name in ("categories", "trained_until")},
    "horizon of the window": ("config.json", put("window", "horizon", value=13), "horizon=7, its settings give 13"),
    "horizon of the shape": ("config.json", put("shape", "horizon", value=13), ""),
    "a huge network": ("config.json", put("model", "hidden_size", value=10**7), "hidden_size=10,000,000"),
    "a huge horizon": ("config.json", put("shape", "horizon", value=10**12), "horizon=1,000,000,000,000"),
    "negative": ("config.json", put("shape", "n_past", value=-1), "n_past=-1"),
    "text for a number": ("config.json", put("shape", "context_length", value="28"), ""),
    "a fraction of steps": ("config.json", put("shape", "context_length", value=28.5), ""),
    "no context": ("config.json", put("shape", "context_length", value=0), ""),
    "one covariate fewer": ("config.json", put("data", "past_covariates", value=[]), "n_past=1"),
    "another covariate": ("config.json", put("data", "known_covariates", value=["promo", "fair"]), "n_known=1"),
    "no calendar": ("config.json", put("data", "calendar", value=False), "n_calendar"),
    "a city fewer": ("config.json", put("categories", "city", value=["x"]), "category_sizes"),
    "categories of a number": ("config.json", put("categories", "size", value=["1", "2"]), "n_static_numbers|category"),
    "another frequency": ("config.json", put("grid", "frequency", value="soon"), ""),
    "trained until never": ("config.json", put("trained_until", value=2**62), ""),
    "trained until text": ("config.json", put("trained_until", value="2024"), ""),
    "a kind": ("bank.json", put("kind", value="heads"), "unknown kind, heads"),
    "names": ("bank.json", put("series_id", value=["a", "a"]), "not unique"),
    "numbers as names": ("bank.json", put("series_id", value=[1, 2]), "not unique text"),
    "one name": ("bank.json", put("series_id", value=["a"]), "changes of 1 series are of another number"),
    "levels": ("calibration.json", put("levels", value=[0.9, 0.5, 0.1]), "other than those of the model"),
    "two levels": ("calibration.json", put("levels", value=[0.1, 0.9]), "shifts of quantiles have shape"),
    "no series": ("calibration.json", put("series_id", value=[]), "shifts of quantiles have shape"),
    "a bucket": (SHIFTS, put("bucket", value=torch.full((7,), 9)), "other steps"),
}


@pytest.mark.parametrize("name", CASES)
def test_content_that_is_no_model_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    file, change, message = CASES[name]
    with pytest.raises(ArtifactError, match=message or None):
        load(changed(saved, tmp_path / "model", file, change))


def test_the_model_that_the_cases_change_is_one(saved: Path, weekly_loaded: Loaded, tmp_path: Path) -> None:
    folder = changed(saved, tmp_path / "model", "config.json", lambda _: None)
    assert load(folder).digest() == load(saved).digest()
    sources = forecast(load(folder), weekly_loaded.panel).frame["source"].value_counts()
    assert dict(sources.iter_rows())["fine_tuned"] == 2 * 7


def paths(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in JSON."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(found for name, value in items for found in paths(value, (*path, name)))]


ODD_VALUES: tuple[Any, ...] = (None, -1, 0, 3, 1e300, "x", "", [], {}, [1, "a"], True, {"a": 1}, 10**30)


def test_no_odd_value_in_a_file_of_json_is_a_traceback(saved: Path, weekly_loaded: Loaded, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    files = ("config.json", "bank.json", "calibration.json", "manifest.json")
    contents = {name: json.loads((saved / name).read_text()) for name in files}
    shutil.copytree(saved, tmp_path / "model")
    panel = weekly_loaded.panel.rows(0, 2)
    refused = 0
    for number in range(160):
        name = files[number % 16 // 5]
        content = json.loads(json.dumps(contents[name]))
        every = paths(content)[1:]
        path = every[rng.integers(len(every))]
        inner = content
        for part in path[:-1]:
            inner = inner[part]
        inner[path[-1]] = ODD_VALUES[rng.integers(len(ODD_VALUES))]
        (tmp_path / "model" / name).write_text(json.dumps(content))
        if name != "manifest.json":
            seal(tmp_path / "model")
        try:
            artifact = load(tmp_path / "model")
        except ArtifactError:
            refused += 1
        else:
            result = forecast(artifact, panel)
            assert result.frame["series_id"].n_unique() + result.rejects.height == 2, (name, path)
        (tmp_path / "model" / name).write_text(json.dumps(contents[name]))
        seal(tmp_path / "model")
    assert refused > 60


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json", "bank.json"])
def test_no_bytes_in_a_file_are_a_traceback(saved: Path, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(5)
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    whole = (saved / name).read_bytes()
    expected = hashlib.sha256((saved / "manifest.json").read_bytes()).hexdigest()
    for number in range(12):
        content = bytearray(whole)
        at = int(rng.integers(min(len(content), 400)))
        if number % 3 == 0:
            content[at : at + 4] = rng.bytes(4)
        elif number % 3 == 1:
            del content[at:]
        else:
            content = bytearray(b"[" * 100_000)
        (folder / name).write_bytes(content)
        assert not is_intact(folder, expected)
        with pytest.raises(ArtifactError):
            load(folder)
        if name != "manifest.json":
            seal(folder)
            try:
                assert isinstance(load(folder), Artifact)
            except ArtifactError as error:
                assert str(folder) in str(error)  # noqa: PT017
            shutil.copy(saved / "manifest.json", folder)
