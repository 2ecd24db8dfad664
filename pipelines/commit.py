"""`forecast commit JOB`: join the shards that other processes have written, and publish."""

from typing import Final

from pipelines.cli import function_of
from pipelines.jobs.command_line import action_of

_JOBS: Final = {
    "score": "publish the forecasts of shards: the manifest, the ledger and the MLflow run",
    "finetune": "register the version that shards have fine-tuned",
    "backtest": "join the scores and forecasts of shards: the tables, the ledger and the MLflow run",
}


def main(argv: list[str]) -> None:
    """Run the verb: that of the job with the same settings, which computes nothing. Without a job, it is `score`."""
    if argv and "=" in argv[0]:
        argv = ["score", *argv]
    if (action := action_of("commit", argv, _JOBS)) is None:
        return
    job, words = action
    settings = [word for word in words if not word.startswith("shard=")]
    function_of(job)([*settings, "shard=commit"])
