"""`forecast promote`: the challenger becomes champion, if its backtest says that it is not worse."""

from datetime import datetime
from typing import TYPE_CHECKING

from forecast.config import PromoteConfig
from pipelines.record import note, recorded

if TYPE_CHECKING:
    from forecast.gate import Verdict
    from forecast.registry import Version


@recorded(PromoteConfig)
def main(config: PromoteConfig) -> None:
    """Run the verb."""
    version, verdict = run(config)
    print(f"{version} is champion: {verdict}")


def run(config: PromoteConfig) -> "tuple[Version, Verdict | str]":
    """Compare the version with the champion, or with seasonal naive where there is none, and move the alias.

    A fine-tuned version is compared with its base, too.

    Raises GateRefused if it is worse, has not been backtested beside the present champion, or was rolled back before.
    """
    from forecast.backtest import BACKTEST_RUN
    from forecast.errors import GateRefused
    from forecast.gate import judge
    from forecast.names import CHALLENGER, CHAMPION
    from forecast.registry import DEMOTED, Registry

    registry = Registry(config.registry)
    version = registry.resolve(config.registry.alias or CHALLENGER)
    note(model=str(version))
    champion = registry.find(CHAMPION)
    if champion and champion.number == version.number:
        return version, "it already was"
    if (why := version.tags.get(DEMOTED)) and not config.promote.force:
        raise GateRefused(
            f"{version} is not promoted: it was the champion and was rolled back: {why}; make a new challenger "
            "(forecast refresh), or set promote.force=true"
        )
    again = f"run forecast backtest registry.name={version.name} registry.alias={version.number} data.path=TABLE"
    run_id = version.tags.get(BACKTEST_RUN)
    if not run_id:
        raise GateRefused(f"{version} has no backtest; {again}")
    with registry.run("promote", config, {"version": str(version.number)}) as run:
        note(mlflow=run.link)
        judged = registry.read_json(run_id, "backtest.json")
        if judged["champion"] != (champion.number if champion else None):
            raise GateRefused(f"{version} was not backtested beside the present champion, {champion}; {again}")
        scores = registry.read_table(run_id, "scores.parquet")
        until = [datetime.fromisoformat(text) for text in judged.get("targets_until", ())]
        try:
            verdict = judge(scores, judged["challenger"], until or None)
        except GateRefused as refused:
            raise GateRefused(f"{version} is not promoted: {refused}") from None
        run.tags({"verdict": str(verdict), "replaced_version": champion.number if champion else ""})
        registry.promote(version)
    return version, verdict
