"""The table of verbs and jobs: names, functions, configs and dependencies.

Heavy imports are avoided here, as `forecast --help` reads this module.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from forecast.config import JobConfig


class Verb(NamedTuple):
    """A word of the command line."""

    function: str
    """`module:function`; it takes the arguments after the verb."""
    about: str


class JobVerb(NamedTuple):
    """A verb, or an action of one, that is written into the run ledger."""

    config: str
    """Name of its config class in `forecast.config`."""
    cutoff: str | None = None
    """Setting for the cutoff."""
    title: str | None = None
    """Title of its report; None without a page."""
    after: tuple[str, ...] = ()
    """Jobs that write its inputs: a model, or forecasts."""


VERBS: Final = {
    "quickstart": Verb("pipelines.quickstart:main", "forecast a file, and find out what it holds"),
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
    "score": Verb("pipelines.score:main", "write the forecasts of a registered model, or of a bundle"),
    "commit": Verb("pipelines.commit:main", "join the shards of a job: check that all are there, and publish"),
    "scores": Verb("pipelines.scores:main", "list or show forecasts that were written, with their versions"),
    "compare": Verb("pipelines.compare:main", "show what changed between two forecasts, and why"),
    "reconcile": Verb("pipelines.reconcile:main", "make the forecasts of series and of their sums add up"),
    "monitor": Verb("pipelines.monitor:main", "compare forecasts with actuals, and roll back a worse champion"),
    "retain": Verb("pipelines.retain:main", "free old versions, runs, forecasts and states, after a look at them"),
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
    "train": JobVerb("TrainConfig", _UNTIL, "Training"),
    "pretrain": JobVerb("PretrainConfig"),
    "tune": JobVerb("TuneConfig", _UNTIL),
    "finetune": JobVerb("FinetuneConfig", _UNTIL, "Fine-tuning", after=("train",)),
    "backtest": JobVerb("BacktestConfig", _UNTIL, "Backtest", after=("finetune", "calibrate")),
    "calibrate": JobVerb("CalibrateConfig", _UNTIL, "Calibration", after=("finetune",)),
    "distil": JobVerb("DistilConfig", _UNTIL, "Distillation"),
    "explain": JobVerb("ExplainConfig", "explain.cutoff"),
    "promote": JobVerb("PromoteConfig", after=("backtest",)),
    "refresh": JobVerb("RefreshConfig", _UNTIL, after=("train",)),
    "score": JobVerb("ScoreConfig", "score.cutoff", "Forecasts", after=("promote", "refresh")),
    "reconcile": JobVerb("ReconcileConfig", "reconcile.cutoff"),
    "monitor": JobVerb("MonitorConfig", "monitor.as_of", after=("score",)),
    "retain": JobVerb("RetainConfig", after=("score",)),
    "data prepare": JobVerb("PrepareConfig"),
    "data append": JobVerb("AppendConfig"),
    "models add": JobVerb("AddConfig"),
    "models register": JobVerb("RegisterConfig"),
    "models rollback": JobVerb("RollbackConfig"),
    "models delete": JobVerb("DeleteConfig"),
}

INCIDENTAL: Final[dict[str, Any]] = {
    "ledger": True,
    "engine": True,
    "shard": True,
    "registry": {"tracking_uri", "tracking", "spool", "system_metrics"},
    "fit": {"checkpoint"},
    "finetune": {"checkpoint"},
    "output": {"format", "layout", "value"},
}
"""Settings that do not affect results: places of records, checkpoints and workers."""


_ADDED: Final = {
    "monitor": ("anomaly_rate",),
    "score": ("cold_start", "overrides", "horizon", "scenario"),
    "backtest": ("horizon",),
}
"""Settings that earlier releases lack, by group: at their default they are not part of digests."""


def digest_text(config: "JobConfig", exclude: Mapping[str, Any]) -> str:
    """Return the settings of a job as JSON, for its digest: without `exclude`, and without new settings not in use."""
    excluded = dict(exclude)
    for group, names in _ADDED.items():
        settings = getattr(config, group, None)
        fields = {} if settings is None else type(settings).model_fields
        unused = {name for name in names if name in fields and getattr(settings, name) == fields[name].default}
        if unused and excluded.get(group) is not True:
            excluded[group] = {*excluded.get(group, ()), *unused}
    return config.model_dump_json(exclude=excluded)


def config_of(job: str) -> "type[JobConfig]":
    """Return the config class of a job. Raises KeyError for other verbs."""
    from forecast import config

    kind: type[JobConfig] = getattr(config, JOBS[job].config)
    return kind


def cutoff_keys() -> dict[str, set[str]]:
    """Return the cutoff settings of jobs, by config group."""
    keys: dict[str, set[str]] = {}
    for group, name in (job.cutoff.split(".") for job in JOBS.values() if job.cutoff):
        keys.setdefault(group, set()).add(name)
    return keys
