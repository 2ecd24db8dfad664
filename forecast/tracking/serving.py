"""The file that MLflow stores with a model and runs to load it: it only names our class."""

from mlflow.models import set_model

from forecast.pyfunc import GatecastModel

set_model(GatecastModel())
