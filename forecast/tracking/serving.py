"""The code file that MLflow stores with a model and runs to load it: it only names `forecast.pyfunc`'s class."""

from mlflow.models import set_model

from forecast.pyfunc import GatecastModel

set_model(GatecastModel())
