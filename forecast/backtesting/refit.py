"""Models that are fitted again as the cutoffs go on."""

from collections.abc import Iterator

from forecast.backtesting.cutoffs import moments_of
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, FinetuneSettings
from forecast.data.ingest.categories import with_codes
from forecast.errors import DataError
from forecast.finetuning.finetune import finetune
from forecast.names import SOURCE_FINE_TUNED, SOURCE_PRETRAINED
from forecast.training.fit import fit

# --- models on the way


def refit_rounds(
    contenders: dict[str, Contender], settings: BacktestSettings, cutoffs: list[int]
) -> Iterator[tuple[list[int], dict[str, Contender]]]:
    """Yield cutoffs that are scored together, and the models they are scored with."""
    every = len(cutoffs) if settings.refit == "never" else settings.refit_every or 1
    for first in range(0, len(cutoffs), every):
        part, models = cutoffs[first : first + every], contenders
        if settings.refit != "never":
            models = _refitted(contenders, settings, part[0])
        models = {name: Contender(each.for_cutoff(part[0]), panel) for name, (each, panel) in models.items()}
        yield from ((own, models) for own in ([part] if settings.window_length is None else [[c] for c in part]))


def _refitted(contenders: dict[str, Contender], settings: BacktestSettings, cutoff: int) -> dict[str, Contender]:
    """Return what is made from the first contender of the data up to a cutoff; nothing behind it is read.

    What is known of the future (known covariates, calendar) is known here too.
    """
    artifact, panel = next(iter(contenders.values()))
    length = settings.window_length
    seen = panel.between(int(panel.start.min()) if length is None else cutoff - length + 1, cutoff)
    base, tuning = artifact.base().uncalibrated(), settings.finetune
    kinds = {other.bank.kind for other, _ in contenders.values() if other.bank}
    try:
        if not seen.n_series:
            raise DataError("no series has a value there")
        if settings.refit == "scratch":
            base = fit(
                seen,
                data=artifact.data,
                categories=artifact.categories,
                window=artifact.window,
                model=artifact.model,
                fit=settings.fit.model_copy(update={"holdout_windows": 0}),
            ).artifact
            seen, panel = (with_codes(part, artifact.categories, base.categories, base.data) for part in (seen, panel))
            if tuning == FinetuneSettings() and kinds:
                tuning = FinetuneSettings.model_validate({"kind": min(kinds)})
        models = {SOURCE_PRETRAINED: Contender(base, panel)}
        if settings.refit == "finetune" or kinds:
            tuned = finetune(base, seen, tuning.model_copy(update={"holdout_windows": 0})).artifact
            models[SOURCE_FINE_TUNED] = Contender(tuned, panel)
    except DataError as error:
        raise DataError(
            f"backtest.refit={settings.refit} at {moments_of(panel, [cutoff])}: {error}; or begin with a later cutoff "
            "(backtest.n_windows, backtest.cutoffs)"
        ) from error
    return models
