"""The forecasts that may go: cutoffs older than the rules say, unless `forecast monitor` still reads them.

A cutoff is freed in an order that leaves no manifest without its files: the manifest moves into the folder `.freeing`,
where readers do not look, then rows and files go, then the manifest. After a kill, the next job ends what is there.
"""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import polars as pl

from forecast.config import RetainSettings, SinkConfig, load
from forecast.errors import ConfigError, listing
from forecast.names import CUTOFF, SHADOW, STEP, TIMESTAMP
from forecast.retention.items import CUTOFF as KIND
from forecast.retention.items import Item
from forecast.scoring.manifests import (
    MANIFESTS,
    ForecastKey,
    cutoff_moment,
    in_utc,
    models_of,
    read_manifest,
    read_manifests,
)
from forecast.scoring.sinks.base import STORE, Sink
from forecast.scoring.sinks.open import open_stored

_FREEING: Final = ".freeing"
_STAGING: Final = ".staging"
_WEEK: Final = timedelta(days=7)
_FEW_STEPS: Final = 4


class StoredForecasts:
    """The forecasts of one model in an output folder of `forecast score`, and in the folders below it.

    Raises ConfigError if there are none, or they are in a database whose address is missing.
    """

    def __init__(self, settings: RetainSettings, model: str) -> None:
        assert settings.scores is not None
        self._settings, self._model, self.path = settings, model, Path(settings.scores)
        contents = read_manifests(self.path)
        self.contents = [content for content in contents if content["model"] == model]
        if not self.contents:
            models = listing(models_of(contents)) or "none"
            raise ConfigError(
                f"retain.scores={self.path}: no forecasts of {model}; there are those of: {models}; set registry.name, "
                "or the output.path of a forecast score that is done"
            )
        self._sink = self._open(self.path, self.contents)
        self.cutoffs = sorted({in_utc(cutoff_moment(content)) for content in self.contents})

    @cached_property
    def _since(self) -> datetime:
        return self.threshold()

    def threshold(self) -> datetime:
        """Return the oldest cutoff that stays, in UTC: what any of the rules keeps, or monitor reads, stays."""
        since = oldest_kept(self.cutoffs, self._settings)
        return since if self._settings.unjudged else min(since, self.judged_since())

    def judged_since(self) -> datetime:
        """Return the earliest cutoff whose forecasts `forecast monitor` may read at the latest cutoff, in UTC.

        Its windows are those of `retain.recent` and `retain.history`, or its defaults at most.
        """
        content = self.contents[-1]
        horizon, step = int(content["horizon"]), self._step(content)
        longest = math.ceil(_WEEK / step) if step < _WEEK else _FEW_STEPS
        recent = self._settings.recent or max(longest, horizon)
        history = self._settings.history or 4 * recent
        return self.cutoffs[-1] - (recent + history + horizon) * step

    def _step(self, content: Mapping[str, Any]) -> timedelta:
        """Return the mean length of the steps of forecasts."""
        columns = [pl.col(name) for name in (TIMESTAMP, CUTOFF, STEP)]
        rows = next(self._sink.forecasts(content)).select(columns).head(int(content["horizon"])).collect()
        last = rows.sort(STEP).row(-1, named=True)
        step: timedelta = (in_utc(last[TIMESTAMP]) - in_utc(last[CUTOFF])) / last[STEP]
        return step

    def items(self) -> tuple[list[Item], int]:
        """Return what goes, oldest first, and the number of cutoffs that stay only because monitor reads them."""
        since, by_rule = self._since, oldest_kept(self.cutoffs, self._settings)
        items: list[Item] = []
        for folder, contents in self._folders():
            sink = self._sink if folder == self.path else self._open(folder, contents)
            latest = max((in_utc(cutoff_moment(content)) for content in contents), default=since)
            protected = latest if folder.name == SHADOW else since
            items += [self._item(folder, sink, read_manifest(file), is_begun=True) for file in _journals(folder)]
            items += [
                self._item(folder, sink, content)
                for content in contents
                if in_utc(cutoff_moment(content)) < min(since, protected)
            ]
        return items, sum(since <= cutoff < by_rule for cutoff in self.cutoffs)

    def _folders(self) -> Iterator[tuple[Path, list[dict[str, Any]]]]:
        """Yield the folder and those below it with manifests of their own: the shadow, scenarios."""
        yield self.path, self.contents
        for manifests in sorted((*self.path.glob(f"*/{MANIFESTS}"), *self.path.glob(f"*/*/{MANIFESTS}"))):
            contents = read_manifests(manifests.parent, self._model)
            if contents or _journals(manifests.parent):
                yield manifests.parent, contents

    def _open(self, folder: Path, contents: Sequence[Mapping[str, Any]]) -> Sink:
        settings = self._settings
        stored: dict[str, Any] = {"path": str(folder)}
        if (folder / "forecasts" / "_delta_log").is_dir():
            stored["sink"] = "delta"
        elif any("files" not in content and STORE not in content for content in contents):
            if settings.uri is None:
                raise ConfigError(
                    f"retain.scores={folder}: its forecasts are in a database; set retain.uri to its address, and "
                    "retain.table"
                )
            stored |= {"sink": "sql", "uri": settings.uri.get_secret_value(), "table": settings.table}
        return open_stored(load(SinkConfig, stored), contents, "retain")

    def _item(self, folder: Path, sink: Sink, content: Mapping[str, Any], *, is_begun: bool = False) -> Item:
        key = ForecastKey.of(content)
        size = sink.size(key)
        reason = f"before {moment_text(self._since, key.cutoff)} ({self._settings.forecast_rule})"

        def free() -> int:
            return _free(folder, sink, key)

        return Item(
            KIND,
            f"{folder}: {content[CUTOFF]} by {key.model} v{key.version}",
            size + _size(folder / MANIFESTS / key.manifest) + _size(folder / _FREEING / key.manifest),
            "a killed job had begun to free it" if is_begun else reason,
            free,
            rows=0 if size else int(content["rows"]["written"]) + int(content["rows"]["refused"]),
        )


def oldest_kept(cutoffs: Sequence[datetime], settings: RetainSettings) -> datetime:
    """Return the oldest of these sorted cutoffs, or moment, that the rules keep; the latest cutoff always stays."""
    kept = [cutoffs[-1]]
    if settings.forecast_days is not None:
        kept.append(cutoffs[-1] - timedelta(days=settings.forecast_days))
    if settings.cutoffs is not None:
        kept.append(cutoffs[-min(settings.cutoffs, len(cutoffs))])
    return min(kept)


def moment_text(moment: datetime, like: datetime) -> str:
    """Return a moment in UTC as text, without a time zone if another one has none."""
    return (moment if like.tzinfo else moment.replace(tzinfo=None)).isoformat()


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _journals(folder: Path) -> list[Path]:
    return sorted((folder / _FREEING).glob(f"{CUTOFF}=*.json"))


def _free(folder: Path, sink: Sink, key: ForecastKey) -> int:
    manifest, journal = folder / MANIFESTS / key.manifest, folder / _FREEING / key.manifest
    if manifest.exists():
        journal.parent.mkdir(exist_ok=True)
        manifest.replace(journal)
    freed = sink.free(key) + _size(journal)
    shutil.rmtree(folder / _STAGING / key.folder, ignore_errors=True)
    journal.unlink(missing_ok=True)
    if not any(journal.parent.iterdir()):
        journal.parent.rmdir()
    return freed
