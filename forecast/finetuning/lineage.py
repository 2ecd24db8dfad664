"""Edits of fine-tuned models: drop the changes of some series, extract one series, compare two models."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.data.panel import is_among
from forecast.errors import ConfigError, listing
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import HEAD, AdapterBank
from forecast.models.network.ensemble import require_tunable
from forecast.names import SERIES_ID

STATUS, CHANGE = "status", "change"
ADDED, REMOVED, CHANGED, SAME = "added", "removed", "changed", "same"

# Elements of the changes that are compared at once.
_MAX_ELEMENTS = 20_000_000


def drop_changes(artifact: Artifact, series: Sequence[str], *, key: str) -> Artifact:
    """Return the model with the changes of `series` removed, so that these forecast with the base; nothing is trained.

    The digests of their data are kept, so that an incremental fine-tuning skips them until their data changes.
    Raises ConfigError, which names the setting `key`, if one of them has no changes.
    """
    digest = artifact.digest()
    final = artifact.final and _drop_changes(artifact.final, series, key, digest)
    return replace(_drop_changes(artifact, series, key, digest), final=final)


def _drop_changes(artifact: Artifact, series: Sequence[str], key: str, digest: str) -> Artifact:
    bank = _bank_with(artifact, series, key)
    rows = np.flatnonzero(~is_among(bank.series_id, series)).tolist()
    remaining = bank.some(rows, bank.seen)
    return artifact.with_bank(remaining, trained_until=artifact.trained_until, parent_digest=digest)


def extract_series(artifact: Artifact, series_id: str, *, key: str) -> Artifact:
    """Return a model that forecasts as `artifact` does for one series.

    Changed weights are written into the network, which is then a plain one; changes of other kinds are kept beside the
    base. Raises ConfigError as `drop_changes`.
    """
    digest = artifact.digest()
    final = artifact.final and _extract_series(artifact.final, series_id, key, digest)
    return replace(_extract_series(artifact, series_id, key, digest), final=final)


def _extract_series(artifact: Artifact, series_id: str, key: str, digest: str) -> Artifact:
    bank = _bank_with(artifact, [series_id], key)
    row = bank.series_id.index(series_id)
    if bank.kind in (HEAD, *stacked.FROZEN):
        digests = {name: digest for name, digest in bank.seen.items() if name == series_id}
        subset = bank.some([row], digests)
        return artifact.with_bank(subset, trained_until=artifact.trained_until, parent_digest=digest)
    network = copy.deepcopy(artifact.network)
    member, _ = require_tunable(network)
    weights = stacked.weights(member, bank.changes(torch.tensor([row])))
    member.load_state_dict({name: values[0] for name, values in weights.items()}, strict=False)
    shifts = artifact.calibration and artifact.calibration.of(series_id)
    return replace(artifact, network=network, bank=None, base_lineage=None, calibration=shifts, parent_digest=digest)


def compare_changes(artifact: Artifact, against: Artifact) -> pl.DataFrame:
    """Return the differences between the changes of two models, per series: series_id, status, change.

    A row for each series that has changes in either model. `change` is the norm of the difference between the two
    additions to the base (0 for a model without changes of the series); null where kinds or networks differ.
    """
    bank_a, bank_b = (model.bank or AdapterBank("", [], {}) for model in (artifact, against))
    names = sorted({*bank_a.series_id, *bank_b.series_id})
    rows = [bank.rows(names) for bank in (bank_a, bank_b)]
    shapes = [
        {name: values.shape[1:] for name, values in _additions_at(bank, torch.tensor([0])).items()}
        if bank.series_id
        else {}
        for bank in (bank_a, bank_b)
    ]
    comparable = not all(shapes) or (bank_a.kind == bank_b.kind and shapes[0] == shapes[1])
    size = max(
        1, _MAX_ELEMENTS // max(1, *(sum(shape.numel() for shape in rows_of_bank.values()) for rows_of_bank in shapes))
    )
    norms: list[float | None] = [None] * len(names)
    if comparable and names:
        parts = []
        for first in range(0, len(names), size):
            rows_chunk = [rows_of_bank[first : first + size] for rows_of_bank in rows]
            added_a, added_b = (
                _additions(bank, row, shapes[0] or shapes[1])
                for bank, row in zip((bank_a, bank_b), rows_chunk, strict=True)
            )
            parts.append(
                sum((added_a[name] - added_b[name]).square().reshape(len(rows_chunk[0]), -1).sum(1) for name in added_a)
            )
        norms = torch.cat(parts).sqrt().tolist()  # type: ignore[arg-type]
    status = [
        ADDED if row_b < 0 else REMOVED if row_a < 0 else SAME if norm == 0 else CHANGED
        for row_a, row_b, norm in zip(*(rows_of_bank.tolist() for rows_of_bank in rows), norms, strict=True)
    ]
    schema = {SERIES_ID: pl.String, STATUS: pl.String, CHANGE: pl.Float64}
    return pl.DataFrame({SERIES_ID: names, STATUS: status, CHANGE: norms}, schema=schema)


def _additions_at(bank: AdapterBank, rows: Tensor) -> stacked.Deltas:
    """Return the additions to the base for the series at `rows`, in float64; a width of 1 adds nothing."""
    changes = bank.changes(rows)
    changes = {**changes, "width": changes["width"][:, None] - 1} if bank.kind == HEAD else stacked.deltas(changes)
    return {name: values.double() for name, values in changes.items()}


def _additions(bank: AdapterBank, rows: Tensor, shapes: dict[str, torch.Size]) -> stacked.Deltas:
    """Return the additions to the base for the series at `rows`, zeros for row -1."""
    present = torch.nonzero(rows >= 0).flatten()
    additions = {name: torch.zeros(len(rows), *shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, values in _additions_at(bank, rows[present]).items() if len(present) else ():
        additions[name][present] = values
    return additions


def _bank_with(artifact: Artifact, series: Sequence[str], key: str) -> AdapterBank:
    """Return the bank. Raises ConfigError unless it has changes for each of `series`."""
    if artifact.bank is None:
        raise ConfigError(f"{key}: this version has no changes of series: it is not fine-tuned; set registry.alias")
    requested, tuned = set(series), set(artifact.bank.series_id)
    if missing := sorted(requested - tuned):
        raise ConfigError(
            f"{key}: {len(missing):,} of {len(requested):,} have no changes in this version, and forecast with the "
            f"base: {listing(missing)}; its {len(tuned):,} fine-tuned series are "
            f"{listing(artifact.bank.series_id) or 'none'}"
        )
    return artifact.bank
