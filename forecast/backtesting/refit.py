"""Refits of models at the cutoffs of a backtest (`backtest.refit`)."""

from collections.abc import Iterator

from forecast.backtesting.cutoffs import moments_of
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, FinetuneSettings
from forecast.data.ingest.categories import with_codes
from forecast.errors import DataError
from forecast.finetuning.finetune import finetune
from forecast.names import SOURCE_FINE_TUNED, SOURCE_PRETRAINED
from forecast.training.fit import fit


def refit_rounds(
    contenders: dict[str, Contender], settings: BacktestSettings, cutoffs: list[int]
) -> Iterator[tuple[list[list[int]], dict[str, Contender]]]:
    """Yield the models of each round, with its groups of cutoffs that are scored together."""
    round_size = len(cutoffs) if settings.refit == "never" else settings.refit_every or 1
    for first in range(0, len(cutoffs), round_size):
        round_cutoffs, models = cutoffs[first : first + round_size], contenders
        if settings.refit != "never":
            models = _refitted(contenders, settings, round_cutoffs[0])
        models = {
            name: model._replace(artifact=model.artifact.for_cutoff(round_cutoffs[0])) for name, model in models.items()
        }
        yield [round_cutoffs] if settings.window_length is None else [[cutoff] for cutoff in round_cutoffs], models


def _refitted(contenders: dict[str, Contender], settings: BacktestSettings, cutoff: int) -> dict[str, Contender]:
    """Return the models refitted from the first contender on data up to a cutoff.

    No target after the cutoff is read; known covariates and the calendar are, as in scoring.
    """
    artifact, panel, _ = next(iter(contenders.values()))
    length = settings.window_length
    history = panel.between(int(panel.start.min()) if length is None else cutoff - length + 1, cutoff)
    base, tuning = artifact.base().uncalibrated(), settings.finetune
    kinds = {contender.bank.kind for contender, *_ in contenders.values() if contender.bank}
    try:
        if not history.n_series:
            raise DataError("no series has a value there")
        if settings.refit == "scratch":
            base = fit(
                history,
                data=artifact.data,
                categories=artifact.categories,
                window=artifact.window,
                model=artifact.model,
                fit=settings.fit.model_copy(update={"holdout_windows": 0}),
            ).artifact
            history, panel = (
                with_codes(panel_part, artifact.categories, base.categories, base.data)
                for panel_part in (history, panel)
            )
            if tuning == FinetuneSettings() and kinds:
                tuning = FinetuneSettings.model_validate({"kind": min(kinds)})
        models = {SOURCE_PRETRAINED: Contender(base, panel)}
        if settings.refit == "finetune" or kinds:
            tuned = finetune(base, history, tuning.model_copy(update={"holdout_windows": 0})).artifact
            models[SOURCE_FINE_TUNED] = Contender(tuned, panel)
    except DataError as error:
        raise DataError(
            f"backtest.refit={settings.refit} at {moments_of(panel, [cutoff])}: {error}; or begin with a later cutoff "
            "(backtest.n_windows, backtest.cutoffs)"
        ) from error
    return models
