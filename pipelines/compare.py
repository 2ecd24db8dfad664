"""`forecast compare`: two forecasts of the same timestamps -> what changed, and which part is due to what."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from forecast.config import CompareConfig
from forecast.errors import ConfigError, DataError, GatecastError, RegistryError
from pipelines.jobs import console
from pipelines.jobs.command_line import verb_config

if TYPE_CHECKING:
    import polars as pl

    from forecast.artifact import Artifact

PAGE: Final = "compare.html"
_KNOWN: Final = "data.known_path"


class _Side(NamedTuple):
    """One of the two forecasts."""

    content: "dict[str, Any]"
    """Its manifest."""
    rows: "pl.DataFrame"

    @property
    def name(self) -> str:
        """Cutoff and version, for people."""
        scenario = f", scenario {self.content['scenario']}" if "scenario" in self.content else ""
        return f"{self.content['cutoff']} by {self.content['model']} v{self.content['model_version']}{scenario}"

    @property
    def known_path(self) -> str | None:
        """The table of known covariates of its job; None without one, or in a manifest that does not name it."""
        path: str | None = self.content.get("tables", {}).get(_KNOWN)
        return path


def main(argv: list[str]) -> None:
    """Run the verb."""
    config = verb_config(CompareConfig, "compare", argv)
    console.setup()
    for line in run(config):
        print(line)


def run(config: CompareConfig) -> list[str]:
    """Write changes.parquet, series.parquet and the page; return lines for the terminal.

    Raises DataError without two forecasts of common timestamps; RegistryError if a version is gone; as reading does.
    """
    from forecast.comparison.decompose import AFTER, BEFORE, CHANGE, PARTS, by_series, decompose, shares
    from forecast.data.files import check_writable, write_parquet_atomic, write_text_atomic
    from forecast.reports.compare_page import LABELS, compare_page

    folder = Path(config.output.path)
    check_writable(folder)
    before, after = _sides(config)
    _check_overlap(before, after)
    forecasts = _Forecasts(config, before, after)
    with console.stage("compare") as stage:
        rows = decompose(before.rows, after.rows, forecasts.causes, forecasts)
        series = by_series(rows)
        stage.note(series=series.height, forecasts=len(forecasts.cache))
    write_parquet_atomic(rows, folder / "changes.parquet")
    write_parquet_atomic(series, folder / "series.parquet")
    ids = [set(side.rows["series_id"].unique()) for side in (before, after)]
    counts = {"Series only before": len(ids[0] - ids[1]), "Series only after": len(ids[1] - ids[0])}
    facts = {"Before": before.name, "After": after.name} | {
        name: f"{count:,}" for name, count in counts.items() if count
    }
    subtitle = f"{series.height:,} series, {rows['timestamp'].n_unique():,} common timestamps"
    page = compare_page(rows, "What changed", subtitle, facts)
    write_text_atomic(page, folder / PAGE)
    portion = shares(rows)
    return [
        f"{before.name} -> {after.name}: {subtitle}, total {rows[BEFORE].sum():,.6g} -> {rows[AFTER].sum():,.6g} "
        f"({rows[CHANGE].sum():+,.6g})",
        *(f"  {LABELS[name]}: {rows[name].sum():+,.6g}, {portion[name]:.1%} of the movement" for name in PARTS),
        *(f"  {name}: {count:,}" for name, count in counts.items() if count),
        *(f"  {name}: {change:+,.6g}" for name, change in series.select("series_id", CHANGE).head(5).iter_rows()),
        str(folder / PAGE),
    ]


def _sides(config: CompareConfig) -> tuple[_Side, _Side]:
    """Return the two forecasts of the settings; by default those of the latest two cutoffs."""
    from forecast.errors import listing
    from forecast.scoring.manifests import ForecastKey, current, in_utc, models_of
    from forecast.scoring.scores import Scores

    scores, settings = Scores(config.scores.path), config.compare
    sides = []
    for key, setting, default in (("before", settings.before, -2), ("after", settings.after, -1)):
        if setting is not None and setting.endswith(".json"):
            place = Scores(Path(setting).parent.parent)
            chosen = [content for content in place.contents if ForecastKey.of(content).manifest == Path(setting).name]
        else:
            place = scores
            contents = current(scores.select(_cutoff(key, setting), settings.model))
            if len({content["model"] for content in contents}) > 1:
                raise DataError(
                    f"{config.scores.path}: several models; set compare.model: {listing(models_of(contents))}"
                )
            if setting is None and len(contents) < 2:
                raise DataError(f"{config.scores.path}: forecasts of one cutoff; set compare.before and compare.after")
            chosen = contents[default:][:1] if setting is None else contents
        if not chosen:
            raise DataError(f"compare.{key}={setting}: no such manifest")
        sides.append(_Side(chosen[0], place.read(chosen)))
    first, second = sides
    if in_utc(first.rows["cutoff"][0]) > in_utc(second.rows["cutoff"][0]):
        raise DataError(f"compare.before ({first.name}) is later than compare.after ({second.name}); exchange them")
    return first, second


def _cutoff(key: str, setting: str | None) -> datetime | None:
    try:
        return None if setting is None else datetime.fromisoformat(setting)
    except ValueError:
        raise ConfigError(
            f"compare.{key}={setting}: neither a timestamp such as 2024-05-01 nor the path of a manifest (.json)"
        ) from None


def _check_overlap(before: _Side, after: _Side) -> None:
    if "mean" not in before.rows.columns or "mean" not in after.rows.columns:
        raise DataError("forecasts of classes have no mean; compare is for numbers")
    if before.rows.join(after.rows, on=["series_id", "timestamp"], how="semi").is_empty():
        last, first = before.rows["timestamp"].sort()[-1], after.rows["timestamp"].sort()[0]
        raise DataError(
            f"no series and timestamp is in both: {before.name} ends at {last}, {after.name} begins at {first}; "
            "compare cutoffs less than a horizon apart"
        )


class _Forecasts:
    """Forecasts again with some causes as of the later forecasts, and the others as of the earlier ones."""

    def __init__(self, config: CompareConfig, before: _Side, after: _Side) -> None:
        from forecast.comparison.decompose import COVARIATES, DATA, MODEL

        self._config = config
        self._sides = before, after
        self._artifacts = [self._artifact(side) for side in self._sides]
        identities = [(side.content["model"], side.content["model_digest"]) for side in self._sides]
        differing = {
            DATA: before.content["cutoff"] != after.content["cutoff"],
            MODEL: identities[0] != identities[1],
            COVARIATES: before.known_path != after.known_path,
        }
        self.causes = [name for name, differs in differing.items() if differs]
        self.cache: dict[frozenset[str], pl.DataFrame] = {}

    def _artifact(self, side: _Side) -> "Artifact":
        from forecast.prediction.horizons import with_horizon
        from forecast.tracking.registry import Registry
        from pipelines.jobs.reading import load_version

        name, number = str(side.content["model"]), str(side.content["model_version"])
        registry = Registry(self._config.registry.model_copy(update={"name": name}))
        version = registry.find(number)
        if version is None or version.digest != side.content["model_digest"]:
            raise RegistryError(
                f"{name} v{number}, which forecast from {side.content['cutoff']}, is not in this registry "
                "(registry.tracking_uri), so its forecasts can't be computed again"
            )
        return with_horizon(load_version(registry, version), int(side.content["horizon"]))

    def __call__(self, changed: frozenset[str]) -> "pl.DataFrame":
        """Return the forecasts with the causes in `changed` as of the later forecasts."""
        import polars as pl

        from forecast.comparison.decompose import COVARIATES, DATA, MODEL
        from forecast.names import MEAN
        from forecast.prediction.from_table import forecast_loaded

        if changed not in self.cache:
            artifact = self._artifacts[MODEL in changed]
            cutoff = self._sides[DATA in changed].rows["cutoff"][0]
            known = self._sides[COVARIATES in changed].known_path
            source = self._config.data.model_copy(update={"known_path": known} if known else {})
            try:
                loaded = artifact.open(source, [side.rows["cutoff"][0] for side in self._sides])
            except GatecastError as error:
                raise DataError(
                    f"data.path can't be read as it was for {known or 'these forecasts'}: {error}"
                ) from None
            settings = self._config.compare
            frame = forecast_loaded(artifact, loaded, cutoff=cutoff, max_age=settings.max_age).frame
            self.cache[changed] = frame.with_columns(pl.col(MEAN).clip(settings.min, settings.max))
        return self.cache[changed]
