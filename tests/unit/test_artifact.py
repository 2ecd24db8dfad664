"""Models as folders."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from forecast.artifact import Artifact, digest, load
from forecast.config import FinetuneSettings, SourceConfig
from forecast.data.ingest.loaded import Loaded
from forecast.errors import ArtifactError, DataError
from forecast.finetuning.finetune import finetune
from forecast.prediction.from_table import forecast
from forecast.training.result import FitResult


@pytest.fixture(scope="module")
def tuned(trained: FitResult, weekly_loaded: Loaded) -> Artifact:
    settings = FinetuneSettings(origins=60, gate_windows=2, report_windows=1, min_gain=0.0, min_windows_better=0.0)
    found = finetune(trained.artifact, weekly_loaded.panel, settings).artifact
    assert found.bank is not None
    assert found.bank.series_id
    return found


@pytest.fixture(params=["pretrained", "fine_tuned"])
def artifact(request: pytest.FixtureRequest, trained: FitResult, tuned: Artifact) -> Artifact:
    return tuned if request.param == "fine_tuned" else trained.artifact


def test_what_is_loaded_is_what_was_saved(artifact: Artifact, weekly_loaded: Loaded, tmp_path: Path) -> None:
    artifact.save(tmp_path)
    found = load(tmp_path)
    assert found.kind == artifact.kind
    for field in ("data", "window", "model", "categories", "grid", "trained_until", "parent_digest"):
        assert getattr(found, field) == getattr(artifact, field), field
    before, after = artifact.network.state_dict(), found.network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not found.network.training
    if artifact.bank is not None and found.bank is not None:
        assert found.bank.series_id == artifact.bank.series_id
        assert torch.equal(found.bank.tensors["weight"], artifact.bank.tensors["weight"])
    made = [forecast(a, weekly_loaded.panel).frame for a in (artifact, found)]
    assert made[0].equals(made[1])


def test_the_manifest_says_until_when_the_model_was_trained(artifact: Artifact, tmp_path: Path) -> None:
    artifact.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    until = artifact.grid.timestamps(np.array([artifact.trained_until]))[0]
    assert manifest["trained_until"] == until.isoformat() == artifact.trained_until_timestamp.isoformat()
    # One that was written before has no such field, and the same answer.
    (tmp_path / "model" / "manifest.json").write_text(
        json.dumps({name: value for name, value in manifest.items() if name != "trained_until"})
    )
    assert load(tmp_path / "model").trained_until_timestamp == until


def test_equal_models_have_equal_digests_and_others_another(artifact: Artifact, tmp_path: Path) -> None:
    first, second = artifact.save(tmp_path / "a"), artifact.save(tmp_path / "b")
    assert first == second == digest(tmp_path / "a") == artifact.digest() == load(tmp_path / "b").digest()
    other = load(tmp_path / "a")
    with torch.no_grad():
        other.network.output_bias[0, 0] += 1e-6
    assert other.digest() != first


def test_the_digest_does_not_depend_on_where_the_rows_were(trained: FitResult) -> None:
    artifact = trained.artifact
    elsewhere = artifact.reading(SourceConfig(path="elsewhere.parquet", on_error="fail"))
    assert elsewhere.path == "elsewhere.parquet"
    moved = Artifact(**{**{f: getattr(artifact, f) for f in artifact.__dataclass_fields__}, "data": elsewhere})
    assert moved.digest() == artifact.digest()


def test_the_folder_holds_safetensors_and_json_and_no_series(
    artifact: Artifact, weekly_loaded: Loaded, tmp_path: Path
) -> None:
    artifact.save(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    tensors = sum(values.numel() for values in artifact.network.state_dict().values())
    tensors += artifact.bank.tensors["weight"].numel() if artifact.bank else 0
    assert sum(path.stat().st_size for path in files) < 4 * tensors + 16_000
    content = b"".join(path.read_bytes() for path in files)
    target = weekly_loaded.panel.target
    for at in range(0, len(target) - 2, 50):
        assert target[at : at + 2].tobytes() not in content
    if artifact.kind == "pretrained":
        # In quotes: three letters are among the bytes of weights by chance.
        assert not any(f'"{name}"'.encode() in content for name in weekly_loaded.panel.series_id.tolist())


def test_base_is_the_model_without_its_changes(trained: FitResult, tuned: Artifact) -> None:
    assert tuned.kind == "fine_tuned"
    assert tuned.parent_digest == trained.artifact.digest()
    assert tuned.base().kind == "pretrained"
    assert tuned.base().network is trained.artifact.network


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "bank.safetensors", "bank.json"])
def test_a_damaged_file_is_refused(tuned: Artifact, tmp_path: Path, name: str) -> None:
    tuned.save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=f"{name} does not match its manifest"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "bank.safetensors", "bank.json"])
def test_a_missing_file_is_refused(tuned: Artifact, tmp_path: Path, name: str) -> None:
    tuned.save(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ArtifactError, match=f"{name} is missing"):
        load(tmp_path)


def test_a_folder_without_a_manifest_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"not a gatecast model, manifest.json is missing"):
        load(tmp_path)


BAD_MANIFESTS = ["", "{", "[]", "7", "{}", '{"format_version": 1}', '{"format_version": 1, "files": {}}']


@pytest.mark.parametrize("content", BAD_MANIFESTS)
def test_a_damaged_manifest_is_refused(trained: FitResult, tmp_path: Path, content: str) -> None:
    trained.artifact.save(tmp_path)
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"manifest.json|format version None"):
        load(tmp_path)


def test_a_format_of_another_version_is_refused(trained: FitResult, tmp_path: Path) -> None:
    trained.artifact.save(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    with pytest.raises(ArtifactError, match=r"format version 99, this program reads 1"):
        load(tmp_path)


def test_a_table_on_another_grid_is_refused(trained: FitResult, table: Callable[..., pl.DataFrame]) -> None:
    columns = {"rain": 0.0, "promo": 0.0, "city": "oslo", "size": 1.0}
    plain = table({"a": np.arange(30.0)}).with_columns(**{name: pl.lit(value) for name, value in columns.items()})
    assert trained.artifact.read(plain.lazy()).panel.n_series == 1
    shifted = plain.with_columns(pl.col("timestamp") + pl.duration(hours=6))
    with pytest.raises(DataError, match=r"at other moments"):
        trained.artifact.read(shifted.lazy())
    with pytest.raises(DataError, match=r"only every 2 of these steps"):
        trained.artifact.read(plain.gather_every(2).lazy())
    zoned = plain.with_columns(pl.col("timestamp").dt.replace_time_zone("Europe/Oslo"))
    with pytest.raises(DataError, match=r"timestamps are in Europe/Oslo"):
        trained.artifact.read(zoned.lazy())
