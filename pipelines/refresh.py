"""`forecast refresh`: fine-tunes a challenger, backtests it, and promotes it if the gate allows that."""

from forecast.config import BacktestConfig, FinetuneConfig, PromoteConfig, RefreshConfig
from pipelines import backtest, finetune, promote
from pipelines.jobs.job import note, recorded, step


@recorded(RefreshConfig)
def main(config: RefreshConfig) -> None:
    """Run the verb: each step is a job in the ledger, about the version created by the first one.

    An alias that moves meanwhile has no effect. Raises the errors of the steps: GateRefused if the version is worse.
    """
    ledger, data = config.ledger, config.data
    tuning = FinetuneConfig(
        registry=config.registry, ledger=ledger, data=data, finetune=config.finetune, engine=config.engine
    )
    with step("finetune", tuning):
        version, line, _ = finetune.run(tuning)
        note(output=str(version))
    note(model=str(version), output=str(version))
    print(f"{version} ({version.kind}): {line}", flush=True)
    registry = config.registry.model_copy(update={"alias": str(version.number)})
    judging = BacktestConfig(
        registry=registry, ledger=ledger, data=data, backtest=config.backtest, engine=config.engine
    )
    with step("backtest", judging):
        _, line, _ = backtest.run(judging)
    print(f"{version} ({version.kind}): {line}", flush=True)
    promoting = PromoteConfig(registry=registry, ledger=ledger)
    with step("promote", promoting):
        _, verdict = promote.run(promoting)
    print(f"{version} is champion: {verdict}")
