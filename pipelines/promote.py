"""`forecast promote`: the challenger becomes champion if its backtest is not worse."""

import math
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from forecast.config import PromoteConfig
from forecast.errors import GateRefused, RegistryError
from forecast.names import SOURCE_FINE_TUNED, SOURCE_PRETRAINED
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    from forecast.promotion import Verdict
    from forecast.tracking.registry import Registry
    from forecast.tracking.run import Run
    from forecast.tracking.versions import Version


@recorded(PromoteConfig)
def main(config: PromoteConfig) -> None:
    """Run the verb."""
    version, verdict = run(config)
    print(f"{version} is champion: {verdict}")


def run(config: PromoteConfig) -> "tuple[Version, Verdict | str]":
    """Compare the version with the champion, or with seasonal naive without one, and move the alias.

    A fine-tuned version is compared with its base, too.

    Raises GateRefused if it is worse, lacks a backtest against the current champion, or was rolled back before; with
    `promote.force`, it is promoted nevertheless, and the reason becomes a tag of the version and of the run. Also
    raises it if another version becomes champion meanwhile.
    """
    from forecast.names import CHALLENGER
    from forecast.tracking.champions import FORCED
    from pipelines.jobs.reading import open_registry

    registry, force = open_registry(config), config.promote.force
    version = registry.resolve(config.registry.alias or CHALLENGER)
    note(model=str(version))
    champions = registry.champions()
    champion = champions.champion
    if champion and champion.number == version.number:
        return version, "it already was"
    if (obstacle := _obstacle(version)) and not force:
        raise GateRefused(str(obstacle))
    tags = {"version": str(version.number), "replaced_version": str(champion.number) if champion else ""}
    with registry.run("promote", config, tags) as run:
        note(mlflow=run.link)
        try:
            verdict = obstacle or _judge(registry, run, version, champion)
            if not isinstance(verdict, _Refusal):
                run.metrics(_metrics(verdict), version=version, tags={"verdict": verdict})
                registry.promote(version, basis=champions)
                return version, verdict
        except (GateRefused, RegistryError) as error:
            if not force:
                raise
            verdict = _Refusal(str(error))
        if not force:
            raise GateRefused(str(verdict))
        objection = verdict.reason.removeprefix(f"{version} is not promoted: ")
        run.tags({FORCED: objection})
        registry.promote(version, objection=objection)
    return version, f"promote.force=true, although {objection}"


class _Refusal(NamedTuple):
    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, self))


def _obstacle(version: "Version") -> _Refusal | None:
    """Return why a version can't be judged, None if it can."""
    from forecast.names import BACKTEST_RUN
    from forecast.tracking.champions import DEMOTED

    if why := version.tags.get(DEMOTED):
        reason = f"{version} is not promoted: it was the champion and was rolled back: {why}"
        return _Refusal(reason, "make a new challenger (forecast refresh), or set promote.force=true")
    return None if version.tags.get(BACKTEST_RUN) else _Refusal(f"{version} has no backtest", _again(version))


def _metrics(verdict: "Verdict") -> dict[str, float]:
    """Return the metrics of challenger and incumbent, and of the test between them."""
    values = {"p_value": verdict.p_value, "blocks": float(verdict.blocks), "n_windows": float(verdict.n_windows)}
    for label, (challenger, incumbent) in verdict.metrics.items():
        name = label.lower().replace("-", "_")
        values |= {name: challenger, f"{name}_incumbent": incumbent}
    return {f"promote/{name}": value for name, value in values.items() if not math.isnan(value)}


def _judge(registry: "Registry", run: "Run", version: "Version", champion: "Version | None") -> "Verdict | _Refusal":
    """Return the gate's verdict from the backtest of a version, which becomes an input of the run.

    Raises RegistryError for a damaged backtest.
    """
    from forecast.names import BACKTEST_RUN
    from forecast.promotion import judge

    run_id = version.tags[BACKTEST_RUN]
    backtest = registry.record(run_id)
    if backtest is None:
        return _Refusal(f"{version} has no backtest any more: its run {run_id} is deleted", _again(version))
    if backtest.dataset:
        run.inputs(backtest.dataset, version)
    content = registry.read_json(run_id, "backtest.json")
    try:
        champion_facts, challenger = content["champion"], content["challenger"]
        until = [datetime.fromisoformat(text) for text in content.get("targets_until", ())]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        damage = f"backtest.json of run {run_id} is not what a backtest writes ({type(error).__name__}: {error})"
        raise RegistryError(f"{damage}; {_again(version)}") from None
    if champion_facts != (champion.number if champion else None):
        backtested_against = (
            f"the present champion, {champion}" if champion else "nothing: a champion that is gone was there"
        )
        return _Refusal(f"{version} was not backtested beside {backtested_against}", _again(version))
    scores = registry.read_table(run_id, "scores.parquet")
    try:
        return judge(scores, challenger, until or None)
    except GateRefused as refused:
        reason = f"{version} is not promoted: {refused}"
    try:
        verdict = judge(scores, SOURCE_PRETRAINED, until or None)
    except GateRefused:
        return _Refusal(reason)
    return _Refusal(reason, _promote_base(registry, version, champion, verdict))


def _promote_base(registry: "Registry", version: "Version", champion: "Version | None", verdict: "Verdict") -> str:
    """Return advice to promote the base of a refused version, if the gate allows that; "" if it is or was champion."""
    from forecast.tracking.champions import DEMOTED

    base: Version | None = version
    while base and base.kind == SOURCE_FINE_TUNED:
        base = registry.find(str(base.parent)) if base.parent else None
    if base is None or base.number in (version.number, champion and champion.number) or DEMOTED in base.tags:
        return ""
    settings = f"registry.name={base.name} registry.alias={base.number}"
    return (
        f"its base, {base}, passes on the same windows ({verdict}): to promote that, {_again(base)}, then "
        f"forecast promote {settings}"
    )


def _again(version: "Version") -> str:
    return f"run forecast backtest registry.name={version.name} registry.alias={version.number} data.path=TABLE"
