"""The verbs and the jobs among them: the one table of what each is called, runs, and depends on.

Nothing heavy is imported here: `forecast --help` reads it.
"""

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from forecast.config import JobConfig


class Verb(NamedTuple):
    """A word of the command line."""

    function: str
    """`module:function`; it takes the arguments after the verb."""
    about: str


class Job(NamedTuple):
    """A verb, or an action of one, that is written into the run ledger."""

    config: str
    """The class of `forecast.config` that has its settings."""
    cutoff: str | None = None
    """The setting that takes the cutoff."""
    title: str | None = None
    """What its report is called; None: it has no page."""
    after: tuple[str, ...] = ()
    """The jobs that write what it reads: a model, or forecasts."""


VERBS: Final = {
    "train": Verb("pipelines.train:main", "train a model on a panel and register it"),
    "pretrain": Verb("pipelines.pretrain:main", "train a network for any series on synthetic ones"),
    "tune": Verb("pipelines.tune:main", "search for the settings of a training"),
    "finetune": Verb("pipelines.finetune:main", "fine-tune a registered model for each series"),
    "backtest": Verb("pipelines.backtest:main", "judge a registered model on past cutoffs"),
    "calibrate": Verb("pipelines.calibrate:main", "shift quantiles until their coverage matches the nominal level"),
    "distil": Verb("pipelines.distil:main", "train a small model on the forecasts of a large one"),
    "explain": Verb("pipelines.explain:main", "show the effect of each input on a forecast"),
    "promote": Verb("pipelines.promote:main", "make the challenger the champion if its backtest allows it"),
    "refresh": Verb("pipelines.refresh:main", "fine-tune, backtest and promote in one job"),
    "score": Verb("pipelines.score:main", "write the forecasts of a registered model"),
    "scores": Verb("pipelines.scores:main", "list or show forecasts that were written, with their versions"),
    "reconcile": Verb("pipelines.reconcile:main", "make the forecasts of series and of their sums add up"),
    "monitor": Verb("pipelines.monitor:main", "compare forecasts with actuals, and roll back a worse champion"),
    "report": Verb("pipelines.report:main", "write a page about a version, a run or forecasts that works offline"),
    "schedule": Verb("pipelines.schedule:main", "run verbs when they are due, and catch up on missed runs"),
    "runs": Verb("pipelines.runs:main", "list, show or retry runs"),
    "models": Verb("pipelines.models:main", "list, show, compare, add, export, roll back or delete registered models"),
    "server": Verb("pipelines.server:main", "run MLflow's server on PostgreSQL, for a team"),
    "ui": Verb("pipelines.ui:main", "open the web page of runs and models"),
    "data": Verb("pipelines.data:main", "prepare, append to or profile a panel, or write an example panel"),
    "replay": Verb("pipelines.examples.replay:main", "simulate weeks of nightly jobs, failures included"),
    "demo": Verb("pipelines.examples.demo:main", "run the whole job on an example panel"),
}

_UNTIL: Final = "data.until"
JOBS: Final = {
    "train": Job("TrainConfig", _UNTIL, "Training"),
    "pretrain": Job("PretrainConfig"),
    "tune": Job("TuneConfig", _UNTIL),
    "finetune": Job("FinetuneConfig", _UNTIL, "Fine-tuning", after=("train",)),
    "backtest": Job("BacktestConfig", _UNTIL, "Backtest", after=("finetune", "calibrate")),
    "calibrate": Job("CalibrateConfig", _UNTIL, "Calibration", after=("finetune",)),
    "distil": Job("DistilConfig", _UNTIL, "Distillation"),
    "explain": Job("ExplainConfig", "explain.cutoff"),
    "promote": Job("PromoteConfig", after=("backtest",)),
    "refresh": Job("RefreshConfig", _UNTIL, after=("train",)),
    "score": Job("ScoreConfig", "score.cutoff", "Forecasts", after=("promote", "refresh")),
    "reconcile": Job("ReconcileConfig", "reconcile.cutoff"),
    "monitor": Job("MonitorConfig", "monitor.as_of", after=("score",)),
    "data prepare": Job("PrepareConfig"),
    "data append": Job("AppendConfig"),
    "models add": Job("AddConfig"),
    "models register": Job("RegisterConfig"),
    "models rollback": Job("RollbackConfig"),
    "models delete": Job("DeleteConfig"),
}

INCIDENTAL: Final[dict[str, Any]] = {
    "ledger": True,
    "registry": {"tracking_uri", "tracking", "spool"},
    "fit": {"checkpoint"},
    "finetune": {"checkpoint"},
}
"""Settings that no result depends on: where a job is recorded, and where it resumes from."""


def config_of(job: str) -> "type[JobConfig]":
    """Return the config class of a job. Raises KeyError for verbs that are none."""
    from forecast import config

    kind: type[JobConfig] = getattr(config, JOBS[job].config)
    return kind


def cutoff_keys() -> dict[str, set[str]]:
    """Return the settings that take the cutoff of a job, by group."""
    keys: dict[str, set[str]] = {}
    for group, name in (job.cutoff.split(".") for job in JOBS.values() if job.cutoff):
        keys.setdefault(group, set()).add(name)
    return keys
