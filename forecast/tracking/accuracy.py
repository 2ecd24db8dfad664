"""The run that charts the accuracy of a registered model over its versions."""

from collections.abc import Sequence
from typing import Any, Final

from forecast.tracking.cards import CHART_NAME
from forecast.tracking.entities import Metric

CHART: Final = "chart"
"""Tag of the run."""
_ACCURACY: Final = "accuracy"
_NOTE: Final = (
    "Accuracy of each version in its latest backtest: the step is the number of the version. "
    "Backtests on other data are not comparable; `seasonal_naive/` has seasonal naive on the same windows."
)


def log_accuracy(client: Any, _run_id: str, experiment: str, metrics: Sequence[Metric]) -> None:
    """Log metrics in the run that charts them, the first time in a new one."""
    runs = client.search_runs(
        [experiment], f"tags.{CHART} = '{_ACCURACY}'", max_results=1, order_by=["attributes.start_time ASC"]
    )
    if runs:
        run_id = runs[0].info.run_id
    else:
        tags = {CHART: _ACCURACY, "job": CHART, "kind": CHART, "mlflow.note.content": _NOTE}
        run_id = client.create_run(experiment, tags=tags, run_name=CHART_NAME).info.run_id
        client.set_terminated(run_id)
    client.log_batch(run_id, metrics=metrics)
