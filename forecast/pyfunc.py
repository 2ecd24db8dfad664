"""A registered model as MLflow sees it: `mlflow.pyfunc.load_model("models:/name@champion").predict(frame)`."""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from forecast.errors import GatecastError


class GatecastModel(PythonModel):
    """Forecasts a table of series from the latest timestamp in it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifact; nothing in it is executed."""
        from forecast import artifact

        folder = Path(context.artifacts["model"])
        self._artifact = artifact.load(folder)
        self._digest = artifact.digest(folder)
        self.lineage = {
            "digest": self._digest,
            "kind": self._artifact.kind,
            "trained_until": self._artifact.trained_until_timestamp.isoformat(),
            "parent_digest": self._artifact.parent_digest,
        }

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002  MLflow calls it so
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Return the forecasts of the series in `model_input`; rejected rows and series are left out.

        Raises MlflowException for a table that can't be read: served, that is answer 400 with the message.
        """
        from forecast.predict import forecast_frame

        try:
            return forecast_frame(self._artifact, model_input, model_version=self._digest).frame.to_pandas()
        except GatecastError as error:
            raise MlflowException(str(error), BAD_REQUEST) from error
