"""Checks of a loaded model: all numbers are finite, and its parts fit together.

Reading the files and comparing them with the manifest is the task of `artifact`.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor

from forecast.config import FinetuneSettings, ModelConfig
from forecast.data.features.calendar import calendar_features
from forecast.errors import ArtifactError, listing
from forecast.models.adapters.bank import BLEND, HEAD, head_feature_count
from forecast.models.network.ensemble import members_of

if TYPE_CHECKING:
    from forecast.artifact import Artifact

_KINDS = get_args(FinetuneSettings.model_fields["kind"].annotation)


def check_size(shape: Mapping[str, Any], model: ModelConfig, weights: Mapping[str, Tensor]) -> None:
    """Raise ArtifactError for sizes that exceed those of the weights, before a network of that size is built.

    `shape` is the output of `NetworkShape.to_json`.
    """
    widest = max((size for values in weights.values() for size in values.shape), default=0)
    total = sum(values.numel() for values in weights.values())
    sizes = {
        **(
            {}
            if "checkpoint" in shape
            else {"hidden_size": (model.hidden_size, widest), "num_layers": (model.num_layers, len(weights))}
        ),
        **{
            name: (size, total)
            for name, size in (shape | shape.get("network", {})).items()
            if isinstance(size, int) and name not in ("context_length", "season_length", "segment_length")
        },
        **{
            name: (sum(shape.get(name, ())), total)
            for name in ("category_sizes", "past_categories", "known_categories")
        },
    }
    wrong = [f"{name}={size:,}" for name, (size, limit) in sizes.items() if not 0 <= size <= limit]
    if wrong:
        raise ArtifactError(f"{listing(wrong)} does not fit {total:,} weights")


def check_parts(artifact: "Artifact") -> None:
    """Raise ArtifactError for numbers that are not finite, and for parts that do not fit together."""
    wrong = [
        *_not_finite(artifact),
        *_settings_mismatches(artifact),
        *_bank_mismatches(artifact),
        *_horizon_mismatches(artifact),
    ]
    if final := artifact.final:
        parts = (*_not_finite(final), *_settings_mismatches(final), *_bank_mismatches(final))
        wrong += [f"of the final fit {reason}" for reason in parts if reason not in wrong]
        if final.trained_until < artifact.trained_until:
            wrong.append(f"the final fit has seen less ({final.trained_until:,}) than the evaluated weights")
    if wrong:
        raise ArtifactError(listing(wrong))


def _not_finite(artifact: "Artifact") -> Iterator[str]:
    """Yield a description of the tensors with numbers that are not finite."""
    tensors = dict(artifact.network.state_dict())
    tensors |= {
        f"changes of series, {name}": values
        for name, values in (artifact.bank.tensors if artifact.bank else {}).items()
    }
    if artifact.coupling is not None:
        tensors["coupling of steps"] = artifact.coupling
    if artifact.calibration:
        tensors["calibration"] = artifact.calibration.shift
    counts = {
        name: int((~torch.isfinite(values)).sum()) for name, values in tensors.items() if values.is_floating_point()
    }
    total, names = sum(counts.values()), [name for name, count in counts.items() if count]
    if total:
        yield f"{total:,} weights are not finite, in {listing(names, 3)}"


def _settings_mismatches(artifact: "Artifact") -> Iterator[str]:
    """Yield a description of each size of the network that differs from the settings and categories."""
    data, categories, grid = artifact.data, artifact.categories, artifact.grid
    until = np.array([artifact.trained_until])
    if grid.index(grid.timestamps(until)).to_list() != until.tolist():
        yield f"trained_until={artifact.trained_until:,} is no time"
        return
    expected = {
        "horizon": artifact.window.horizon,
        "n_past": len(data.past_covariates) + len(data.lags) + len(data.rolling),
        "n_known": len(data.known_covariates),
        "category_sizes": tuple(len(categories[name]) for name in data.static_covariates if name in categories),
        "n_static_numbers": sum(name not in categories for name in data.static_covariates),
        "n_classes": len(categories.get(data.columns.target, ())),
    }
    if data.holidays is None:
        expected["n_calendar"] = len(calendar_features(grid, int(until[0]), int(until[0]), data)[0])
    for number, member in enumerate(members_of(artifact.network), 1):
        for name, value in expected.items():
            if getattr(member.shape, name) != value:
                yield f"network {number} has {name}={getattr(member.shape, name)}, its settings give {value}"
        for name, columns in (("past_categories", data.past_covariates), ("known_categories", data.known_covariates)):
            sizes = getattr(member.shape, name)[: len(columns)]
            if sizes and sizes != tuple(len(categories.get(column, ())) for column in columns):
                yield f"network {number} has {name}={sizes}, other than its categories"
        if min(member.shape.context_length, member.shape.season_length, member.shape.segment_length) < 1:
            yield f"network {number} has lengths below 1"


def _bank_mismatches(artifact: "Artifact") -> Iterator[str]:
    """Yield a description of each defect of the changes per series."""
    bank = artifact.bank
    if bank is None:
        return
    n_series = len(bank.series_id)
    if bank.kind not in _KINDS:
        yield f"changes of series are of an unknown kind, {bank.kind}"
        return
    if len(set(bank.series_id)) != n_series or not all(isinstance(name, str) for name in bank.series_id):
        yield "names of series with changes are not unique text"
    uneven = [name for name, values in bank.tensors.items() if not values.ndim or len(values) != n_series]
    if uneven:
        yield f"changes of {n_series:,} series are of another number in {listing(uneven)}"
    missing = [name for name in (("weight", "width") if bank.kind == HEAD else (BLEND,)) if name not in bank.tensors]
    if missing:
        yield f"changes of series lack {listing(missing)}"
    elif bank.kind == HEAD and not uneven:
        shape = artifact.network.shape
        features = head_feature_count(shape, artifact.network.state_size)
        weight, width = (tuple(bank.tensors[name].shape) for name in ("weight", "width"))
        if width != (n_series,) or weight[:2] != (n_series, features) or len(weight) != 3 or weight[2] % shape.horizon:
            yield f"changes of series have weights of shape {weight} and widths of shape {width}"


def _horizon_mismatches(artifact: "Artifact") -> Iterator[str]:
    """Yield a description of each mismatch of coupling or calibration with horizon and levels."""
    horizon, calibration = artifact.horizon, artifact.calibration
    if artifact.coupling is not None and artifact.coupling.shape != (horizon, horizon):
        yield f"the coupling of steps has shape {tuple(artifact.coupling.shape)}, not {(horizon, horizon)}"
    if calibration is None:
        return
    levels = np.array(calibration.levels, dtype=np.float64)
    shape = (len(calibration.series_id) + 1, int(calibration.shift.shape[1]), len(levels))
    if calibration.shift.shape != shape or calibration.bucket.shape != (horizon,):
        yield f"shifts of quantiles have shape {tuple(calibration.shift.shape)}, not {shape}"
    elif (
        calibration.bucket.is_floating_point()
        or not ((calibration.bucket >= 0) & (calibration.bucket < shape[1])).all()
    ):
        yield "shifts of quantiles are of other steps"
    if calibration.levels != artifact.model.quantile_levels:
        yield f"the calibration is of levels {listing(calibration.levels)}, other than those of the model"
