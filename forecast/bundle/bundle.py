"""A bundle: a version of a model in files that score without torch.

    bundle.json                        format, version of the model, settings, and a hash of each file
    forecast.onnx, naive.onnx          the model, and the form of its fallback (`forecast.bundle.graph`)
    adapter_row.json, ...npy           changes of each series, and their names
    calibration_row.json, ...npy       shifts of quantiles, and their names
    final-...                          the same of the final fit, if there is one

Nothing here imports torch.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from forecast.config import DataConfig, WindowConfig
from forecast.data.files import damages
from forecast.data.time.grid import Grid
from forecast.errors import ArtifactError, ConfigError, listing
from forecast.forecasting_model import ForecastingModel
from forecast.models.inputs.shape import NetworkShape

FORMAT_VERSION: Final = 1
MANIFEST: Final = "bundle.json"
FORECAST_GRAPH: Final = "forecast.onnx"
NAIVE_GRAPH: Final = "naive.onnx"
ADAPTER: Final = "adapter"
CALIBRATION: Final = "calibration"
PARTS: Final = {ADAPTER: ("weight", "width"), CALIBRATION: ("shift",)}
"""Arrays per series of each part: the graph's inputs are adapter_weight, and so on, and adapter_row of each window."""
FINAL: Final = "final-"


@dataclass(frozen=True, eq=False)
class Bundle(ForecastingModel):
    """A bundle in a folder; `load` checks all of its files."""

    folder: Path
    names: dict[str, str]
    """Identifies the version that was exported: model, model_version and model_digest."""
    files: Mapping[str, str]
    """Names of the files of these weights, by what they hold."""
    data: DataConfig
    window: WindowConfig
    network_shape: NetworkShape
    levels: tuple[float, ...]
    categories: dict[str, tuple[str, ...]]
    grid: Grid
    trained_until: int
    final: "Bundle | None" = None
    side_tables: Mapping[str, str] = field(default_factory=dict)

    @property
    def shape(self) -> NetworkShape:
        """The shape of the network."""
        return self.network_shape

    @property
    def quantile_levels(self) -> tuple[float, ...]:
        """Levels of the forecast quantiles."""
        return self.levels

    def path(self, name: str) -> Path:
        """Return the path of a file of these weights, such as FORECAST_GRAPH."""
        return self.folder / self.files[name]

    def arrays(self, part: str) -> dict[str, np.ndarray]:
        """Return the arrays of a part, by the graph's names for them, mapped from their files."""
        names = (f"{part}_{array}" for array in PARTS[part])
        return {name: np.load(self.path(f"{name}.npy"), mmap_mode="r") for name in names}

    @cached_property
    def rows(self) -> dict[str, dict[str, int]]:
        """The row of each series in the arrays of each part."""
        return {
            part: json.loads(self.path(f"{part}_row.json").read_text("utf-8"))
            for part in PARTS
            if f"{part}_row.json" in self.files
        }

    def at_horizon(self, horizon: int | None) -> "Bundle":
        """Return the bundle with forecasts of `horizon` steps, all when None. Raises ConfigError beyond its own."""
        trained = self.network_shape.horizon
        if horizon is None or horizon == self.horizon:
            return self
        if horizon > trained:
            raise ConfigError(
                f"score.horizon: {horizon:,} steps are more than the {trained:,} of the bundle; give {trained:,} or "
                "less, or score the registered version, which rolls forecasts further"
            )
        return replace(self.until(horizon), final=self.final and self.final.until(horizon))


def load(folder: Path) -> Bundle:
    """Return the bundle in a folder, after checking every file against its manifest.

    Raises ArtifactError if a file is missing or changed, or the format is that of another version.
    """
    manifest = _manifest(folder)
    if reasons := damages(folder, manifest["files"]):
        raise ArtifactError(f"{folder}: {listing(reasons)}; export the bundle again")
    try:
        return _parse(folder, manifest)
    except (KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ArtifactError(
            f"{folder}: {MANIFEST} describes no bundle that this program knows ({type(error).__name__}: {reason}); "
            "use the gatecast that wrote it, or export it again"
        ) from error


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{folder}: no bundle, {MANIFEST} is missing; `forecast models export export.format=bundle` writes one"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{folder / MANIFEST}: not readable as JSON ({error})") from None
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder}: a bundle of format {version}, this program reads {FORMAT_VERSION}; export it again with this "
            "gatecast, or score with the one that wrote it"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or any(Path(name).name != name for name in files):
        raise ArtifactError(f"{folder}: {MANIFEST} does not list the files of a bundle; export it again")
    return dict(manifest)


def _parse(folder: Path, manifest: Mapping[str, Any]) -> Bundle:
    config = manifest["config"]
    bundle = Bundle(
        folder=folder.absolute(),
        names=manifest["names"],
        files=config["weights"],
        data=DataConfig.model_validate(config["data"]),
        window=WindowConfig.model_validate(config["window"]),
        network_shape=NetworkShape.from_json(config["shape"]),
        levels=tuple(config["quantile_levels"]),
        categories={name: tuple(values) for name, values in config["categories"].items()},
        grid=Grid.from_json(config["grid"]),
        trained_until=config["trained_until"],
        side_tables=config["side_tables"],
    )
    if "final" not in config:
        return bundle
    final = config["final"]
    return replace(bundle, final=replace(bundle, files=final["weights"], trained_until=final["trained_until"]))
