"""The MLflow flavour of a registered model: `mlflow.pyfunc.load_model("models:/name@champion").predict(frame)`."""

from pathlib import Path
from typing import Any, Final

import pandas as pd
import polars as pl
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from forecast.config import ServingSettings, load
from forecast.data.ingest.rejects import SHOWN, offenders
from forecast.errors import DataError, GatecastError
from forecast.names import CUTOFF, MODEL_DIGEST, MODEL_NAME, MODEL_VERSION, REASON, SERIES_ID, TIMESTAMP

# File that MLflow writes beside a model from the registry.
_REGISTERED: Final = "registered_model_meta"


class GatecastModel(PythonModel):
    """A model that forecasts a table of series from their common end."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifact; nothing in it is executed."""
        from forecast import artifact

        folder = Path(context.artifacts["model"])
        self._artifact = artifact.load(folder)
        registered, digest = _registered(folder), artifact.digest(folder)
        self._version = registered.get("model_version") or digest
        self.lineage = {
            "name": registered.get("model_name"),
            "version": registered.get("model_version"),
            "digest": digest,
            "kind": self._artifact.kind,
            "trained_until": self._artifact.trained_until_timestamp.isoformat(),
            "final_until": self._artifact.latest.trained_until_timestamp.isoformat(),
            "parent_digest": self._artifact.parent_digest,
        }
        """Origin of the model; name and version are None for a model that is not from a registry."""

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow calls it so
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return the forecasts of the series in `model_input`, as rows like those that `forecast score` writes.

        Rejected rows and series follow as rows with a value in the column `reason`; of the other columns only
        series_id, timestamp, cutoff and model_version have a value there. The column is absent if nothing is rejected.
        With `params={"rejects": "omit"}` rejects are left out, with `"fail"` they are an error. `params={"max_age":
        ...}` is `score.max_age`.

        Raises MlflowException (status 400 when served) for a table that can't be read, or unknown values of `params`.
        """
        from forecast.prediction.from_table import forecast_frame

        try:
            settings = load(ServingSettings, params or {})
            result = forecast_frame(self._artifact, model_input, max_age=settings.max_age, model_version=self._version)
            frame = result.frame.with_columns(
                pl.lit(self.lineage["name"], pl.String).alias(MODEL_NAME),
                pl.lit(self.lineage["digest"]).alias(MODEL_DIGEST),
            )
            if result.rejects.is_empty() or settings.rejects == "omit":
                return frame.to_pandas()
            if settings.rejects == "fail":
                raise DataError(_described(result.rejects))
        except GatecastError as error:
            raise MlflowException(str(error), BAD_REQUEST) from error
        return _with_rejects(frame, result.rejects, self._version)


class Answer(pd.DataFrame):  # type: ignore[misc]
    """Forecasts and rejects. In JSON, missing values are null, because JSON has no NaN."""

    @property
    def _constructor(self) -> type["Answer"]:
        return Answer

    def to_dict(self, *arguments: Any, **settings: Any) -> Any:
        """Return the values, with None for missing ones."""
        return pd.DataFrame(self).astype(object).where(self.notna(), None).to_dict(*arguments, **settings)


def _with_rejects(frame: pl.DataFrame, rejects: pl.DataFrame, version: str) -> Answer:
    """Return the forecasts, followed by a row for each reject."""
    rows = rejects.select(
        SERIES_ID,
        pl.col(TIMESTAMP).cast(frame.schema[TIMESTAMP]),
        REASON,
        pl.lit(frame[CUTOFF].first(), frame.schema[CUTOFF]).alias(CUTOFF),
        pl.lit(version).alias(MODEL_VERSION),
    )
    table = pl.concat([frame, rows], how="diagonal")
    integers = [name for name, kind in frame.schema.items() if kind.is_integer()]
    return Answer(table.to_pandas().astype(dict.fromkeys(integers, "Int64")))


def _described(rejects: pl.DataFrame) -> str:
    """Return a text with the number of rejects of each reason, and examples."""
    lines = [
        f"  {reason}: {part.height:,}, e.g. {', '.join(offenders(part.head(SHOWN)))}"
        for (reason,), part in rejects.group_by(REASON, maintain_order=True)
    ]
    return "\n".join([f"{rejects.height:,} rows or series are rejected (params: rejects=fail):", *lines])


def _registered(folder: Path) -> dict[str, str]:
    """Return name and version of a model from the registry; an empty dictionary for other models."""
    try:
        content = yaml.safe_load((folder.parents[1] / _REGISTERED).read_text(encoding="utf-8"))
        return {name: str(content[name]) for name in ("model_name", "model_version") if content[name] is not None}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
