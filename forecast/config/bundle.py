"""The settings of scoring a bundle, which are not those of a registered version."""

from typing import Self

from pydantic import model_validator

from forecast.config.base import Config
from forecast.config.data import SourceTable
from forecast.config.output import ScoreOutput, ScoreSettings


class BundleScoreConfig(Config):
    """`forecast score bundle=PATH`: forecasts by a bundle, without a registry, a run in MLflow or the ledger."""

    bundle: str
    """A folder that `forecast models export export.format=bundle` has written."""
    data: SourceTable
    score: ScoreSettings = ScoreSettings()
    output: ScoreOutput

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        """Refuse what only a registered version can do."""
        values = {
            "score.state": self.score.state,
            "score.scenario": self.score.scenario,
            "score.shadow": self.score.shadow,
            "output.n_samples": self.output.n_samples or None,
            "score.runtime": None if self.score.runtime == "torch" else self.score.runtime,
        }
        if refused := [key for key, value in values.items() if value is not None]:
            raise ValueError(
                f"{', '.join(refused)}: not for bundles; leave out, or score the registered version (registry.alias) "
                "with the whole gatecast"
            )
        return self
