"""`forecast reconcile`: scored forecasts and a hierarchy -> coherent forecasts of all totals, and a manifest."""

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import ReconcileConfig, ReconcileSettings, ReconcileSource
from forecast.data.files import file_hash
from forecast.environment import gatecast_version
from forecast.errors import ConfigError, DataError, OutputError, listing
from pipelines.jobs import console
from pipelines.jobs.job import manifest_of, note, recorded

if TYPE_CHECKING:
    import polars as pl

    from forecast.reconciliation.reconcile import Reconciled
    from forecast.scoring.manifests import ForecastKey, Kind

_LINEAGE: Final = ("model", "model_version", "model_digest", "run_id", "trained_until")
"""Fields copied from the manifest of the forecasts."""


@recorded(ReconcileConfig)
def main(config: ReconcileConfig) -> None:
    """Run the verb."""
    manifest, line = run(config)
    note(output=manifest_of([manifest]))
    console.say(line)


def run(config: ReconcileConfig) -> tuple[Path, str]:
    """Reconcile the forecasts of one cutoff unless they are complete; return the manifest and a line about it."""
    from forecast.data.files import locked
    from forecast.data.sources.frames import collect
    from forecast.data.sources.tables import scan
    from forecast.names import CUTOFF, SERIES_ID, TARGET, TIMESTAMP
    from forecast.reconciliation.hierarchy import hierarchy_of
    from forecast.reconciliation.reconcile import past_errors, reconcile
    from forecast.scoring.manifests import MANIFESTS, ForecastKey

    settings, out = config.reconcile, Path(config.output.path)
    if out.resolve() == Path(settings.path).resolve():
        raise ConfigError("output.path and reconcile.path are the same folder; give the sums one of their own")
    scored = _scored(settings, config.registry.name)
    cutoff, latest = _select(scored, settings.cutoff)
    note(cutoff=cutoff)
    with locked(out):
        with console.stage("read") as stage:
            columns = dict.fromkeys(
                name for names in settings.by for name in ((names,) if isinstance(names, str) else names)
            )
            table = scan(settings.table, (SERIES_ID, *columns), "reconcile.table", (SERIES_ID, *columns))
            needed = [name for name in (SERIES_ID, *columns) if name in table.collect_schema().names()]
            rows = collect(table.select(needed).unique())
            hierarchy = hierarchy_of(rows, settings.by)
            forecasts, ended, errors = _forecasts(settings, latest), _ended(settings, latest), None
            if settings.actuals is not None:
                before = [content for moment, content in scored.items() if moment < cutoff]
                if not before:
                    raise DataError(
                        f"reconcile.actuals: no cutoff before {cutoff} in {settings.path}; score past ones "
                        "(score.cutoffs), or leave it out"
                    )
                key_columns = (SERIES_ID, TIMESTAMP, TARGET)
                actuals = collect(
                    scan(settings.actuals, key="reconcile.actuals", columns=key_columns).select(key_columns)
                )
                past_forecasts = [_forecasts(settings, content) for content in before]
                errors = past_errors(_stacked(past_forecasts), actuals, hierarchy, ended)
            stage.note(series=len(hierarchy.series), sums=len(hierarchy.nodes) - len(hierarchy.series))
        key = _key(settings, latest, hierarchy.nodes, rows, errors)
        source = ForecastKey.of(latest)._replace(is_legacy=False)
        manifest = out / MANIFESTS / source.manifest
        if _is_complete(manifest, key, out):
            return manifest, f"cutoff {cutoff}: done before, nothing was written"
        with console.stage("reconcile") as stage:
            reconcile_settings = ReconcileSettings(**settings.model_dump(include=set(ReconcileSettings.model_fields)))
            reconciled = reconcile(forecasts, hierarchy, reconcile_settings, errors=errors, ended=ended)
            stage.note(nodes=reconciled.counts["nodes"])
        lineage = {name: latest.get(name) for name in _LINEAGE}
        _write(out, source, key, reconciled, {CUTOFF: cutoff, "method": settings.method, **lineage})
    console.table(reconciled.summary)
    return manifest, _line(cutoff, settings, reconciled, out)


def _scored(settings: ReconcileSource, model: str) -> dict[str, dict[str, Any]]:
    """Return the manifests of a scores folder by cutoff, oldest first.

    With several models, those of `model`; with several versions of a cutoff, the current one.
    """
    from forecast.scoring.manifests import current, models_of, read_manifests

    contents = read_manifests(Path(settings.path))
    if not contents:
        raise DataError(f"reconcile.path={settings.path}: no forecasts; give the output.path of `forecast score`")
    models = models_of(contents)
    if len(models) > 1:
        contents = [content for content in contents if content["model"] == model]
    if not contents:
        raise ConfigError(f"reconcile.path={settings.path}: has forecasts of {listing(models)}; set registry.name")
    return {str(content["cutoff"]): content for content in current(contents)}


def _select(scored: dict[str, dict[str, Any]], cutoff: datetime | None) -> tuple[str, dict[str, Any]]:
    if cutoff is None:
        return list(scored.items())[-1]
    from forecast.data.time.frequency import local_clock

    for moment, content in scored.items():
        available = datetime.fromisoformat(moment)
        if available.tzinfo is None and local_clock.get():
            cutoff = cutoff.replace(tzinfo=None)
        if available == cutoff or available.replace(tzinfo=None) == cutoff:
            return moment, content
    raise DataError(f"reconcile.cutoff: no forecasts from {cutoff}; there are {listing(scored)}")


def _forecasts(settings: ReconcileSource, content: dict[str, Any]) -> "pl.DataFrame":
    from forecast.scoring.manifests import FORECASTS

    return _rows(settings, content, FORECASTS)


def _ended(settings: ReconcileSource, content: dict[str, Any]) -> list[str]:
    """Return the series without forecast because they have ended."""
    import polars as pl

    from forecast.data.ages import ENDED
    from forecast.names import REASON, SERIES_ID
    from forecast.scoring.manifests import REJECTS

    if not content.get("rejects", {}).get(ENDED):
        return []
    ended = _rows(settings, content, REJECTS).filter(pl.col(REASON) == ENDED)[SERIES_ID]
    return sorted(ended.drop_nulls().to_list())


def _rows(settings: ReconcileSource, content: dict[str, Any], kind: "Kind") -> "pl.DataFrame":
    """Return the forecasts or rejects of a cutoff. Raises DataError for missing files."""
    import polars as pl

    from forecast.config import SinkConfig
    from forecast.scoring.manifests import FORECASTS
    from forecast.scoring.sinks.open import open_stored

    if "files" not in content:
        raise ConfigError("reconcile.path: forecasts in Delta Lake or a database are not read; score with sink=parquet")
    try:
        sink = open_stored(SinkConfig(path=settings.path), [content], "reconcile")
        rows = sink.forecasts(content) if kind == FORECASTS else sink.rejects(content)
        return pl.concat(rows, how="diagonal_relaxed").collect()
    except OutputError as error:
        raise DataError(str(error)) from None


def _stacked(frames: "Sequence[pl.DataFrame]") -> "pl.DataFrame":
    import polars as pl

    from forecast.names import CUTOFF, MEAN, SERIES_ID, STEP, TIMESTAMP

    return pl.concat(frame.select(SERIES_ID, TIMESTAMP, CUTOFF, STEP, MEAN) for frame in frames)


def _key(
    settings: ReconcileSource,
    content: dict[str, Any],
    nodes: list[str],
    rows: "pl.DataFrame",
    errors: "pl.DataFrame | None",
) -> str:
    """Return a digest of all inputs of the output."""
    import hashlib

    paths = {"path", "table", "actuals", "cutoff"}
    digest = hashlib.sha256(settings.model_dump_json(exclude=paths).encode())
    parts: list[Any] = [content["files"], nodes, gatecast_version()]
    parts += [sorted(rows.select(sorted(rows.columns)).rows(), key=str)]
    parts += [None if errors is None else errors.write_json()]
    digest.update(json.dumps(parts).encode())
    return digest.hexdigest()


def _is_complete(manifest: Path, key: str, folder: Path) -> bool:
    """Return whether the output is complete and intact."""
    try:
        content = json.loads(manifest.read_text(encoding="utf-8"))
        return content["key"] == key and all(file_hash(folder / name) == sha for name, sha in content["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def _write(folder: Path, source: "ForecastKey", key: str, reconciled: "Reconciled", facts: dict[str, Any]) -> None:
    """Write the forecasts, then the manifest, and remove earlier output of this cutoff and model."""
    from forecast.data.files import write_parquet_atomic, write_text_atomic
    from forecast.scoring.manifests import FORECASTS, MANIFESTS, partition

    part = folder / FORECASTS / source.folder / f"part-00000-{key[:16]}.parquet"
    write_parquet_atomic(reconciled.frame, part)
    content = {
        **facts,
        "key": key,
        **reconciled.counts,
        "rows": reconciled.frame.height,
        "incoherence": reconciled.incoherence,
        "files": {str(part.relative_to(folder)): file_hash(part)},
    }
    manifest = folder / MANIFESTS / source.manifest
    write_text_atomic(json.dumps(content, indent=1) + "\n", manifest)
    for path in manifest.parent.glob(f"{partition(source.cutoff)}.*json"):
        before = json.loads(path.read_text(encoding="utf-8"))
        if path != manifest and before.get("model") in (None, source.model):
            path.unlink()
            for name in before["files"]:
                (folder / name).unlink(missing_ok=True)
                with suppress(OSError):
                    (folder / name).parent.rmdir()
    for file in part.parent.iterdir():
        if file.name != part.name:
            file.unlink()


def _line(cutoff: str, settings: ReconcileSource, reconciled: "Reconciled", folder: Path) -> str:
    counts, off = reconciled.counts, reconciled.incoherence
    method = f"correlations of {counts['errors']:,} past errors" if counts["errors"] else "intervals as if independent"
    parts = [
        f"cutoff {cutoff}, {settings.method}",
        f"{counts['series']:,} series + {counts['nodes'] - counts['series']:,} sums = {counts['nodes']:,} nodes",
        method,
        f"sums at most {off['absolute']:.2g} ({off['relative']:.2g} of their size) off",
        *([f"{counts['dropped']:,} series without a forecast left out"] if counts["dropped"] else []),
        *([f"{counts['ended']:,} ended series add nothing"] if counts.get("ended") else []),
        *([f"{counts['negative']:,} values below 0 now"] if counts["negative"] else []),
        f"{reconciled.frame.height:,} rows",
        str(folder),
    ]
    return ", ".join(parts)
