"""Files of a model's folder: weights, changes per series and calibration as safetensors and JSON, and the manifest."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import safetensors.torch

from forecast.artifact_checks import check_size
from forecast.config import ModelConfig
from forecast.errors import ArtifactError
from forecast.models.adapters.bank import AdapterBank
from forecast.models.network.ensemble import Forecaster, as_ensemble, build_member, members_of
from forecast.models.postprocess.conformal import Calibration

FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
_MEMBER: Final = "member-"
COUPLING: Final = "coupling.safetensors"
BANK: Final = "bank.safetensors"
_BANK_INDEX: Final = "bank.json"
CALIBRATION: Final = "calibration.safetensors"
_CALIBRATION_INDEX: Final = "calibration.json"
FINAL: Final = "final-"
"""Prefix of the files of the final fit. Parts that it shares with the evaluated model are stored once."""


# ---- Parts ----


def weight_files(count: int, prefix: str = "") -> list[str]:
    """Return the names of the weight files of `count` networks."""
    return [prefix + WEIGHTS, *(f"{prefix}{_MEMBER}{number:02d}.safetensors" for number in range(2, count + 1))]


def save_weights(network: Forecaster, folder: Path, prefix: str = "") -> list[str]:
    """Write the weights of each network; return the names of the files."""
    members = members_of(network)
    names = weight_files(len(members), prefix)
    for name, member in zip(names, members, strict=True):
        state = {key: values.contiguous() for key, values in member.state_dict().items()}
        safetensors.torch.save_file(state, folder / name)
    return names


def load_weights(
    folder: Path,
    files: dict[str, str],
    shapes: dict[str, Any],
    model: ModelConfig,
    shares: Sequence[float] | None,
    prefix: str = "",
) -> Forecaster:
    """Return the network with the weights in `files`, in evaluation mode."""
    names = [prefix + WEIGHTS, *sorted(name for name in files if name.startswith(prefix + _MEMBER))]
    members = []
    for name in names:
        weights = safetensors.torch.load_file(folder / name)
        shape = shapes[name.removeprefix(prefix)]
        check_size(shape, model, weights)
        members.append(build_member(shape, model))
        for buffer in ("cold_scale", "mean_shift", "interval_scale"):  # Not in models of earlier releases.
            weights.setdefault(buffer, getattr(members[-1], buffer))
        members[-1].load_state_dict(weights)
    return as_ensemble(members, shares).eval()


def save_bank(bank: AdapterBank, before: tuple[int, str | None] | None, folder: Path, prefix: str = "") -> list[str]:
    """Write changes per series; return the names of the files."""
    names = [prefix + BANK, prefix + _BANK_INDEX]
    tensors = {name: values.contiguous() for name, values in bank.tensors.items()}
    safetensors.torch.save_file(tensors, folder / names[0])
    index = {"kind": bank.kind, "series_id": bank.series_id, "seen": bank.seen}
    write_json(folder / names[1], {**index, "before": before})
    return names


def load_bank(folder: Path, prefix: str = "") -> tuple[AdapterBank, tuple[int, str | None] | None]:
    """Return changes per series, and `Artifact.base_lineage`."""
    index = read_json(folder / (prefix + _BANK_INDEX))
    tensors = safetensors.torch.load_file(folder / (prefix + BANK))
    before = tuple(index["before"]) if index.get("before") else None
    return AdapterBank(index["kind"], index["series_id"], tensors, index.get("seen")), before


def save_calibration(calibration: Calibration, folder: Path) -> list[str]:
    """Write the shifts of quantiles; return the names of the files."""
    safetensors.torch.save_file({"bucket": calibration.bucket, "shift": calibration.shift}, folder / CALIBRATION)
    write_json(folder / _CALIBRATION_INDEX, {"levels": calibration.levels, "series_id": calibration.series_id})
    return [CALIBRATION, _CALIBRATION_INDEX]


def load_calibration(folder: Path) -> Calibration:
    """Return the shifts of quantiles."""
    index, tensors = read_json(folder / _CALIBRATION_INDEX), safetensors.torch.load_file(folder / CALIBRATION)
    return Calibration(index["levels"], tensors["bucket"], tensors["shift"], index["series_id"])


# ---- Manifest ----


def files_of(folder: Path) -> dict[str, str]:
    """Return the files of the manifest with their hashes. Raises ArtifactError for a manifest that can't be used."""
    manifest = read_json(folder / MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder}: format version {version}, this program reads {FORMAT_VERSION}; use a matching gatecast"
        )
    files = manifest.get("files")
    if (
        not isinstance(files, dict)
        or not {CONFIG, WEIGHTS} <= files.keys()
        or any(Path(name).name != name for name in files)
    ):
        raise ArtifactError(f"{folder}: {MANIFEST} does not list the files of a model; download the version again")
    return files


# ---- Any file ----


def write_json(path: Path, content: Any) -> None:
    """Write JSON with sorted keys, so that equal content has equal bytes."""
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises ArtifactError if it is missing or malformed."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path.parent}: not a gatecast model, {path.name} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from None
