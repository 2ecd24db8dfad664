"""Fine-tuned models by series: without some of them, one of them alone, and beside another model."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import torch
from torch import Tensor

from forecast.artifact import Artifact
from forecast.errors import ConfigError, listing
from forecast.models.adapters import stacked
from forecast.models.adapters.bank import HEAD, Bank
from forecast.models.network.ensemble import require_tunable
from forecast.names import SERIES_ID

STATUS, CHANGE = "status", "change"
ADDED, REMOVED, CHANGED, SAME = "added", "removed", "changed", "same"

# Numbers of the changes of several series that are compared at once.
_NUMBERS = 20_000_000


def without(artifact: Artifact, series: Sequence[str], *, key: str) -> Artifact:
    """Return the model whose `series` forecast with the base again; nothing is trained.

    What they were fine-tuned on stays known, so that an incremental fine-tuning leaves them alone until it changes.
    Raises ConfigError, which names the setting `key`, if one of them has no changes.
    """
    digest = artifact.digest()
    final = artifact.final and _without(artifact.final, series, key, digest)
    return replace(_without(artifact, series, key, digest), final=final)


def _without(artifact: Artifact, series: Sequence[str], key: str, digest: str) -> Artifact:
    bank = _known(artifact, series, key)
    rows = [row for row, name in enumerate(bank.series_id) if name not in set(series)]
    rest = bank.some(rows, bank.seen)
    return artifact.with_bank(rest, trained_until=artifact.trained_until, parent_digest=digest)


def alone(artifact: Artifact, series_id: str, *, key: str) -> Artifact:
    """Return a model that forecasts like one series of `artifact`.

    Changed weights are written into the network, which then is a plain one; of the other kinds, the changes of this
    series are kept beside the base. Raises ConfigError as `without`.
    """
    digest = artifact.digest()
    final = artifact.final and _alone(artifact.final, series_id, key, digest)
    return replace(_alone(artifact, series_id, key, digest), final=final)


def _alone(artifact: Artifact, series_id: str, key: str, digest: str) -> Artifact:
    bank = _known(artifact, [series_id], key)
    row = bank.series_id.index(series_id)
    if bank.kind in (HEAD, *stacked.FROZEN):
        seen = {name: found for name, found in bank.seen.items() if name == series_id}
        own = bank.some([row], seen)
        return artifact.with_bank(own, trained_until=artifact.trained_until, parent_digest=digest)
    network = copy.deepcopy(artifact.network)
    member, _ = require_tunable(network)
    found = stacked.weights(member, bank.changes(torch.tensor([row])))
    member.load_state_dict({name: values[0] for name, values in found.items()}, strict=False)
    shifts = artifact.calibration and artifact.calibration.of(series_id)
    return replace(artifact, network=network, bank=None, before=None, calibration=shifts, parent_digest=digest)


def difference(artifact: Artifact, against: Artifact) -> pl.DataFrame:
    """Return how the changes of each series differ from those in another model: series_id, status, change.

    A row for each series that has changes in one of them. `change` is the norm of the difference of what is added to
    the base (nothing, where it has no changes); null where the kinds or the networks are not alike.
    """
    own, other = (model.bank or Bank("", [], {}) for model in (artifact, against))
    names = sorted({*own.series_id, *other.series_id})
    rows = [bank.rows(names) for bank in (own, other)]
    shapes = [
        {name: values.shape[1:] for name, values in _added(bank, torch.tensor([0])).items()} if bank.series_id else {}
        for bank in (own, other)
    ]
    alike = not all(shapes) or (own.kind == other.kind and shapes[0] == shapes[1])
    size = max(1, _NUMBERS // max(1, *(sum(shape.numel() for shape in each.values()) for each in shapes)))
    norms: list[float | None] = [None] * len(names)
    if alike and names:
        parts = []
        for first in range(0, len(names), size):
            some = [each[first : first + size] for each in rows]
            one, two = (_at(bank, row, shapes[0] or shapes[1]) for bank, row in zip((own, other), some, strict=True))
            parts.append(sum((one[name] - two[name]).square().reshape(len(some[0]), -1).sum(1) for name in one))
        norms = torch.cat(parts).sqrt().tolist()  # type: ignore[arg-type]
    status = [
        ADDED if two < 0 else REMOVED if one < 0 else SAME if norm == 0 else CHANGED
        for one, two, norm in zip(*(each.tolist() for each in rows), norms, strict=True)
    ]
    schema = {SERIES_ID: pl.String, STATUS: pl.String, CHANGE: pl.Float64}
    return pl.DataFrame({SERIES_ID: names, STATUS: status, CHANGE: norms}, schema=schema)


def _added(bank: Bank, rows: Tensor) -> stacked.Changes:
    """Return what is added to the base for some series, in float64; a width of 1 adds nothing."""
    found = bank.changes(rows)
    found = {**found, "width": found["width"][:, None] - 1} if bank.kind == HEAD else stacked.deltas(found)
    return {name: values.double() for name, values in found.items()}


def _at(bank: Bank, rows: Tensor, shapes: dict[str, torch.Size]) -> stacked.Changes:
    """Return what is added for some series, zeros for row -1."""
    there = torch.nonzero(rows >= 0).flatten()
    found = {name: torch.zeros(len(rows), *shape, dtype=torch.float64) for name, shape in shapes.items()}
    for name, values in _added(bank, rows[there]).items() if len(there) else ():
        found[name][there] = values
    return found


def _known(artifact: Artifact, series: Sequence[str], key: str) -> Bank:
    """Return the bank, which has changes of all these series."""
    if artifact.bank is None:
        raise ConfigError(f"{key}: this version has no changes of series: it is not fine-tuned; set registry.alias")
    wanted, there = set(series), set(artifact.bank.series_id)
    if missing := sorted(wanted - there):
        raise ConfigError(
            f"{key}: {len(missing):,} of {len(wanted):,} have no changes in this version, and forecast with the base: "
            f"{listing(missing)}; its {len(there):,} fine-tuned series are {listing(artifact.bank.series_id) or 'none'}"
        )
    return artifact.bank
