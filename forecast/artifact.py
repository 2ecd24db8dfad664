"""A trained model as a folder of safetensors and JSON: save, load, check. No pickle, no code, no training data."""

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from forecast.artifact_checks import check_parts
from forecast.artifact_files import (
    BANK,
    CALIBRATION,
    CONFIG,
    COUPLING,
    FINAL,
    FORMAT_VERSION,
    MANIFEST,
    WEIGHTS,
    files_of,
    load_bank,
    load_calibration,
    load_weights,
    read_json,
    save_bank,
    save_calibration,
    save_weights,
    weight_files,
    write_json,
)
from forecast.config import DataConfig, ModelConfig, WindowConfig
from forecast.data.files import damages, file_hash
from forecast.data.time.grid import Grid
from forecast.errors import ArtifactError, OutputError, listing
from forecast.forecasting_model import ForecastingModel
from forecast.models.adapters.bank import AdapterBank
from forecast.models.inputs.shape import NetworkShape
from forecast.models.network.ensemble import Ensemble, Forecaster, members_of
from forecast.models.postprocess.conformal import Calibration


@dataclass(frozen=True, eq=False, repr=False)
class Artifact(ForecastingModel):
    """A trained model: a network with all that a forecast needs besides the panel."""

    network: Forecaster
    """In evaluation mode, on the CPU."""
    data: DataConfig
    window: WindowConfig
    model: ModelConfig
    categories: dict[str, tuple[str, ...]]
    grid: Grid
    trained_until: int
    bank: AdapterBank | None = None
    """Changes per series, in a fine-tuned model."""
    coupling: Tensor | None = None
    """[horizon, horizon], correlation of the steps of a sample path (`copula.coupled_ranks`); None if paths are sampled
    step by step, and for classes."""
    calibration: Calibration | None = None
    """Shifts of the quantiles, in a calibrated model."""
    parent_digest: str | None = None
    base_lineage: tuple[int, str | None] | None = None
    """`trained_until` and `parent_digest` of the model without its changes per series, in a fine-tuned one."""
    final: "Artifact | None" = None
    """The same model after the final fit on all rows of the panel, with other weights and changes per series and a
    later `trained_until`. Validation and backtests use the weights without it; `for_cutoff` selects between them."""
    side_tables: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Locations of the tables of covariates in training, by setting, for sources that do not name any; stored with the
    version, not with the artifact."""

    def __repr__(self) -> str:
        until = self.grid.timestamps(np.array([self.trained_until]))[0]
        parts = [
            self.kind,
            f"every {self.data.freq}",
            f"context {self.window.context_length:,}",
            f"horizon {self.horizon:,}",
            f"trained until {until}",
            *([f"final fit until {self.final.trained_until_timestamp}"] if self.final else []),
            *([f"{len(self.classes):,} classes"] if self.classes else []),
            *([f"{len(self.bank.series_id):,} series with changes"] if self.bank else []),
            *(["calibrated"] if self.calibration else []),
        ]
        return f"Artifact({', '.join(parts)})"

    @property
    def kind(self) -> Literal["pretrained", "fine_tuned"]:
        """`fine_tuned` with a bank, `pretrained` without."""
        return "fine_tuned" if self.bank else "pretrained"

    @property
    def shape(self) -> NetworkShape:
        """The shape of the network."""
        shape: NetworkShape = self.network.shape
        return shape

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Levels of the forecast quantiles."""
        return self.model.quantile_levels

    def with_final(self, network: Forecaster, trained_until: int) -> "Artifact":
        """Return this model with the weights of a final fit on the steps up to grid index `trained_until`."""
        return replace(self, final=replace(self, network=network, trained_until=trained_until, final=None))

    def child_of(self, parent_digest: str, *, trained_until: int) -> "Artifact":
        """Return this model as the child of another one, trained on steps up to grid index `trained_until`."""
        final = self.final and self.final.child_of(parent_digest, trained_until=trained_until)
        until = max(trained_until, self.trained_until)
        return replace(self, trained_until=until, parent_digest=parent_digest, final=final)

    def digest(self) -> str:
        """Return the digest that `save` returns, a hash of all stored content."""
        with tempfile.TemporaryDirectory() as folder:
            return self.save(Path(folder))

    def on(self, device: torch.device | str) -> "Artifact":
        """Return the model with a copy of its network on `device`; the model itself if its network is there.

        The network of this model is not moved.
        """
        if next(self.network.parameters()).device == torch.device(device):
            return self
        return replace(self, network=copy.deepcopy(self.network).to(device))

    def with_bank(self, bank: AdapterBank, *, trained_until: int, parent_digest: str) -> "Artifact":
        """Return this model with changes per series and without its final fit; the base stays bitwise the same."""
        base_lineage = self.base_lineage or (self.trained_until, self.parent_digest)
        return replace(
            self,
            bank=bank,
            trained_until=trained_until,
            parent_digest=parent_digest,
            base_lineage=base_lineage,
            final=None,
        )

    def with_calibration(self, calibration: Calibration, *, trained_until: int) -> "Artifact":
        """Return this model, and its final fit, with calibrated quantiles."""
        final = self.final and replace(self.final, calibration=calibration)
        calibrated = replace(self, calibration=calibration, final=final)
        return calibrated.child_of(self.digest(), trained_until=trained_until)

    def uncalibrated(self) -> "Artifact":
        """Return the model without its calibration."""
        return replace(self, calibration=None, final=self.final and self.final.uncalibrated())

    def base(self) -> "Artifact":
        """Return the model without its changes per series; these gone, also without calibration."""
        if self.bank is None:
            return self
        trained_until, parent_digest = self.base_lineage or (self.trained_until, None)
        final = self.final and self.final.base()
        if final is not None and final.network is self.network:  # The base had no final fit.
            final = None
        return replace(
            self,
            bank=None,
            calibration=None,
            trained_until=trained_until,
            parent_digest=parent_digest,
            base_lineage=None,
            final=final,
        )

    def save(self, folder: str | Path) -> str:
        """Write the model into a new or empty folder and return its digest; equal models have equal digests.

        Raises OutputError if the folder can't be created.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: no folder that a model can be saved into ({error})") from error
        members = members_of(self.network)
        config = {
            "shape": members[0].shape.to_json(),
            "data": self.data.without_source().model_dump(mode="json"),
            "window": self.window.model_dump(mode="json"),
            "model": self.model.model_dump(mode="json"),
            "categories": self.categories,
            "grid": self.grid.to_json(),
            "trained_until": self.trained_until,
            "parent_digest": self.parent_digest,
        }
        if len(members) > 1:
            names = weight_files(len(members))
            config["members"] = {name: member.shape.to_json() for name, member in zip(names, members, strict=True)}
        if isinstance(self.network, Ensemble) and self.network.shares is not None:
            config["shares"] = self.network.shares
        if self.final:
            config["final"] = {"trained_until": self.final.trained_until}
        write_json(folder / CONFIG, config)
        files = [*save_weights(self.network, folder), CONFIG]
        if self.coupling is not None:
            safetensors.torch.save_file({"correlation": self.coupling.contiguous()}, folder / COUPLING)
            files.append(COUPLING)
        if self.bank:
            files += save_bank(self.bank, self.base_lineage, folder)
        if self.calibration:
            files += save_calibration(self.calibration, folder)
        if self.final and self.final.network is not self.network:
            files += save_weights(self.final.network, folder, FINAL)
        if self.final and self.final.bank and self.final.bank is not self.bank:
            files += save_bank(self.final.bank, self.final.base_lineage, folder, FINAL)
        manifest = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "trained_until": self.trained_until_timestamp.isoformat(),
            "files": {name: file_hash(folder / name) for name in sorted(files)},
        }
        write_json(folder / MANIFEST, manifest)
        return file_hash(folder / MANIFEST)


def load(folder: Path) -> Artifact:
    """Return the model in `folder`, after checking every file against the manifest.

    Raises ArtifactError if a file is missing or changed, the format has another version, a number is not finite, or the
    files do not fit together.
    """
    files = files_of(folder)
    if damaged := damages(folder, files):
        raise ArtifactError(f"{folder}: {listing(damaged)}; download the version again")
    try:
        artifact = _parse(folder, files)
        check_parts(artifact)
    except ArtifactError as error:
        raise ArtifactError(f"{folder}: {error}; download the version again, or use the gatecast it is of") from error
    except Exception as error:  # Malformed content makes various libraries raise.
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{folder}: its files are those of its manifest, but describe no model that this program knows "
            f"({type(error).__name__}: {reason}); use the gatecast that wrote it, or register it again"
        ) from error
    return artifact


def is_intact(folder: Path, expected: str) -> bool:
    """Return whether a folder holds the model with digest `expected`, all files intact."""
    try:
        return digest(folder) == expected and not damages(folder, files_of(folder))
    except (OSError, ArtifactError):
        return False


def _parse(folder: Path, files: dict[str, str]) -> Artifact:
    """Return the model in files that match the manifest. Malformed content raises exceptions of any type."""
    config = read_json(folder / CONFIG)
    model = ModelConfig.model_validate(config["model"])
    shapes = config.get("members", {WEIGHTS: config["shape"]})
    shares = config.get("shares")
    network = load_weights(folder, files, shapes, model, shares)
    bank, before = load_bank(folder) if BANK in files else (None, None)
    artifact = Artifact(
        network=network,
        data=DataConfig.model_validate(config["data"]),
        window=WindowConfig.model_validate(config["window"]),
        model=model,
        categories={name: tuple(values) for name, values in config["categories"].items()},
        grid=Grid.from_json(config["grid"]),
        trained_until=config["trained_until"],
        bank=bank,
        coupling=safetensors.torch.load_file(folder / COUPLING)["correlation"] if COUPLING in files else None,
        calibration=load_calibration(folder) if CALIBRATION in files else None,
        parent_digest=config["parent_digest"],
        base_lineage=before,
    )
    if "final" not in config:
        return artifact
    if FINAL + WEIGHTS in files:
        network = load_weights(folder, files, shapes, model, shares, FINAL)
    if FINAL + BANK in files:
        bank, before = load_bank(folder, FINAL)
    final = replace(
        artifact, network=network, bank=bank, base_lineage=before, trained_until=config["final"]["trained_until"]
    )
    return replace(artifact, final=final)


def digest(folder: Path) -> str:
    """Return the digest of a saved model."""
    return file_hash(folder / MANIFEST)
