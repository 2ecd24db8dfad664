"""The way back from a worse champion: which versions are compared, what the gate says, and what a rollback lacks."""

from typing import TYPE_CHECKING, NamedTuple

from forecast.config import MonitorConfig, MonitorSettings
from forecast.errors import GateRefused, RegistryError

if TYPE_CHECKING:
    from forecast.monitoring.forecasts import ScoredForecasts
    from forecast.monitoring.result import MonitorResult
    from forecast.promotion import Verdict
    from forecast.tracking.champions import Champions
    from forecast.tracking.registry import Registry
    from forecast.tracking.versions import Version


class Compared(NamedTuple):
    """What a rollback is decided by."""

    champions: "Champions"
    """When the job began."""
    version: "Version"
    judged: tuple[str, str] | None
    """Its number and that of the version in its shadow."""


def versions_of(champions: "Champions", version: "Version", shadow: "ScoredForecasts | None") -> tuple[str, str] | None:
    """Return which versions are compared: this one, and what a rollback returns to or else the latest in the shadow."""
    if shadow is None:
        return None
    previous = champions.previous(version)
    there = [content["model_version"] for content in shadow.contents]
    other = str(previous.number) if previous and str(previous.number) in there else there[-1]
    return str(version.number), other


def verdict_of(found: "MonitorResult", judged: tuple[str, str] | None) -> "Verdict | GateRefused | None":
    """Return what the gate says of the shadow as a challenger of the champion; None if both have not been observed."""
    from forecast.names import CHAMPION, SHADOW
    from forecast.promotion import compare

    if judged is None or found.pairs.is_empty():
        return None
    try:
        return compare(found.pairs, SHADOW, CHAMPION)
    except GateRefused as refused:
        return refused


def roll_back(
    registry: "Registry",
    config: MonitorConfig,
    compared: Compared,
    found: "MonitorResult",
    verdict: "Verdict | GateRefused | None",
) -> tuple[str, str]:
    """Give the alias back if the champion is worse than the one that a rollback returns to.

    If the alias has moved since the job began, it stays where it is. Return what was done, and why; and why nothing
    was. One of them is empty, or both where no rollback is wanted.
    """
    if not config.monitor.rollback:
        return "", ""
    champions, version, judged = compared
    if obstacle := obstacle_of(champions, version, judged) or lacking(verdict, config.monitor):
        return "", obstacle
    previous = champions.previous(version)
    why = f"as of {found.as_of.isoformat()}, {previous} as its shadow has {verdict}"
    try:
        _, after = registry.rollback(why, basis=champions)
    except RegistryError as error:
        if error.__cause__ is not None:  # the store failed
            raise
        return "", str(error)
    return f"champion rolled back: v{version.number} -> v{after.number}; {why}", ""


def obstacle_of(champions: "Champions", version: "Version", judged: tuple[str, str] | None) -> str:
    """Return why the versions are not those of a rollback; empty if they are."""
    if champions.number != version.number:
        return f"{version} is not the champion"
    previous, why = champions.target()
    if previous is None:
        return f"nothing to roll back to: {why}"
    if judged is None or judged[1] != str(previous.number):
        return f"{previous}, the champion before, is not its shadow (score.shadow=previous)"
    return ""


def lacking(verdict: "Verdict | GateRefused | None", settings: MonitorSettings) -> str:
    """Return what a rollback lacks; empty if nothing."""
    if verdict is None:
        return "nothing that both versions have forecast is observed yet"
    if isinstance(verdict, GateRefused):
        return f"the shadow would not pass the gate: {verdict}"
    few = f"{verdict.n_windows:,} forecasts by both in {verdict.blocks:,} block{'s' * (verdict.blocks != 1)} of time"
    if verdict.n_windows < settings.rollback_min:
        return f"{few}, monitor.rollback_min={settings.rollback_min}"
    if verdict.blocks < settings.rollback_blocks:
        return f"{few}, monitor.rollback_blocks={settings.rollback_blocks}"
    if not verdict.p_value <= settings.rollback_p:
        return f"p = {verdict.p_value:.3g}, monitor.rollback_p={settings.rollback_p:g}"
    return ""
