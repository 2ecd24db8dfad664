"""Rollback of a worse champion: compared versions, verdict, and missing evidence."""

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
    """Basis of the decision on a rollback."""

    champions: "Champions"
    """History of champions at the start of the job."""
    version: "Version"
    versions: tuple[str, str] | None
    """Its number, and that of the version in its shadow."""


def versions_of(champions: "Champions", version: "Version", shadow: "ScoredForecasts | None") -> tuple[str, str] | None:
    """Return the compared versions: this one, and the target of a rollback, else the latest in the shadow."""
    if shadow is None:
        return None
    previous = champions.previous(version)
    in_shadow = [content["model_version"] for content in shadow.contents]
    compared = str(previous.number) if previous and str(previous.number) in in_shadow else in_shadow[-1]
    return str(version.number), compared


def verdict_of(
    evaluation: "MonitorResult", compared_versions: tuple[str, str] | None
) -> "Verdict | GateRefused | None":
    """Return the gate's verdict on the shadow as challenger; None without common observations."""
    from forecast.names import CHAMPION, SHADOW
    from forecast.promotion import compare

    if compared_versions is None or evaluation.pairs.is_empty():
        return None
    try:
        return compare(evaluation.pairs, SHADOW, CHAMPION)
    except GateRefused as refused:
        return refused


def roll_back(
    registry: "Registry",
    config: MonitorConfig,
    compared: Compared,
    evaluation: "MonitorResult",
    verdict: "Verdict | GateRefused | None",
) -> tuple[str, str]:
    """Roll back the champion if it is worse than the target of a rollback.

    An alias that has moved since the start of the job stays. Returns a line about the rollback, and the reason against
    one; one of them is empty, or both without monitor.rollback.
    """
    if not config.monitor.rollback:
        return "", ""
    champions, version, versions = compared
    if obstacle := obstacle_of(champions, version, versions) or missing_evidence(verdict, config.monitor):
        return "", obstacle
    previous = champions.previous(version)
    why = f"as of {evaluation.as_of.isoformat()}, {previous} as its shadow has {verdict}"
    try:
        _, after = registry.rollback(why, basis=champions)
    except RegistryError as error:
        if error.__cause__ is not None:  # the store failed
            raise
        return "", str(error)
    return f"champion rolled back: v{version.number} -> v{after.number}; {why}", ""


def obstacle_of(champions: "Champions", version: "Version", compared_versions: tuple[str, str] | None) -> str:
    """Return why the compared versions do not allow a rollback; empty if they do."""
    if champions.number != version.number:
        return f"{version} is not the champion"
    previous, why = champions.target()
    if previous is None:
        return f"nothing to roll back to: {why}"
    if compared_versions is None or compared_versions[1] != str(previous.number):
        return f"{previous}, the champion before, is not its shadow (score.shadow=previous)"
    return ""


def missing_evidence(verdict: "Verdict | GateRefused | None", settings: MonitorSettings) -> str:
    """Return the evidence that a rollback lacks; empty if none."""
    if verdict is None:
        return "nothing that both versions have forecast is observed yet"
    if isinstance(verdict, GateRefused):
        return f"the shadow would not pass the gate: {verdict}"
    evidence = (
        f"{verdict.n_windows:,} forecasts by both in {verdict.blocks:,} block{'s' * (verdict.blocks != 1)} of time"
    )
    if verdict.n_windows < settings.rollback_min:
        return f"{evidence}, monitor.rollback_min={settings.rollback_min}"
    if verdict.blocks < settings.rollback_blocks:
        return f"{evidence}, monitor.rollback_blocks={settings.rollback_blocks}"
    if not verdict.p_value <= settings.rollback_p:
        return f"p = {verdict.p_value:.3g}, monitor.rollback_p={settings.rollback_p:g}"
    return ""
