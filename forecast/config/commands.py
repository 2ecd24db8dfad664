"""One model for each verb: the groups that its command line takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from forecast.checkpoints import names
from forecast.config.base import Config
from forecast.config.data import (
    LATER,
    AppendSettings,
    DataConfig,
    DataTable,
    HorizonConfig,
    PrepareSettings,
    ProfileSettings,
    QuickstartWindow,
    ScoreTable,
    ScoreWindow,
    SourceConfig,
    SourceTable,
    WindowConfig,
)
from forecast.config.engine import EngineSettings, ShardSetting
from forecast.config.evaluation import BacktestSettings, CalibrateSettings, ExplainSettings
from forecast.config.finetuning import FinetuneSettings
from forecast.config.model import ModelConfig
from forecast.config.monitoring import MonitorSettings
from forecast.config.operations import (
    LedgerConfig,
    QuickstartSettings,
    ReplaySettings,
    ReportSettings,
    RetainSettings,
    RunsSettings,
    ScheduleSettings,
    ServerSettings,
    UiSettings,
)
from forecast.config.output import (
    CompareSettings,
    OutputConfig,
    OutputFolder,
    ReconcileSource,
    ScoreOutput,
    ScoreSettings,
    ShowSettings,
    SinkConfig,
)
from forecast.config.registry import (
    AddSettings,
    DeleteSettings,
    DiffSettings,
    ExportSettings,
    ListSettings,
    PromoteSettings,
    RegistryConfig,
    RollbackSettings,
    SourceFolder,
)
from forecast.config.training import DistilSettings, FitConfig, LocalFit, PretrainSettings, TuneSettings
from forecast.names import CHAMPION


class VerbConfig(Config):
    """Settings of every verb that uses the registry."""

    registry: RegistryConfig = RegistryConfig()


class JobConfig(VerbConfig):
    """Settings of every verb that is recorded in the ledger."""

    ledger: LedgerConfig = LedgerConfig()


class TrainConfig(JobConfig):
    """`forecast train`."""

    data: DataTable
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    fit: FitConfig = FitConfig()


def _of_trained_horizon(backtest: BacktestSettings) -> BacktestSettings:
    """Return the settings of a backtest that judges a version for what it is trained for."""
    if backtest.horizon is not None:
        raise ValueError("horizon is for `forecast backtest`; here a version is judged at the horizon of its training")
    return backtest


class QuickstartConfig(JobConfig):
    """`forecast quickstart`: the settings of `forecast train` and of the backtest; the file decides about others.

    `registry.tracking_uri` is a store in the output folder by default, `registry.name` the name of the file, and
    `output.path` the folder quickstart/NAME.
    """

    data: DataTable
    window: QuickstartWindow = QuickstartWindow()
    model: ModelConfig = ModelConfig()
    fit: LocalFit = FitConfig()
    backtest: Annotated[BacktestSettings, AfterValidator(_of_trained_horizon)] = BacktestSettings()
    quickstart: QuickstartSettings = QuickstartSettings()
    output: OutputConfig = OutputConfig()


class TuneConfig(TrainConfig):
    """`forecast tune`: the settings of `forecast train`, and the search space."""

    fit: LocalFit = FitConfig()
    tune: TuneSettings = TuneSettings()
    output: OutputFolder
    engine: EngineSettings = EngineSettings()


class PretrainConfig(JobConfig):
    """`forecast pretrain`."""

    pretrain: PretrainSettings = PretrainSettings()
    output: OutputFolder


class PrepareConfig(JobConfig):
    """`forecast data prepare`."""

    data: DataTable
    window: HorizonConfig
    prepare: PrepareSettings = PrepareSettings()
    output: OutputFolder


class AppendConfig(JobConfig):
    """`forecast data append`: `output.path` is the prepared panel, `data` the table with the new rows."""

    data: SourceTable
    append: AppendSettings = AppendSettings()
    output: OutputFolder


class ProfileConfig(VerbConfig):
    """`forecast data profile`."""

    data: DataTable
    profile: ProfileSettings = ProfileSettings()
    output: OutputConfig = OutputConfig()


class FinetuneConfig(JobConfig):
    """`forecast finetune`: `registry.alias` is the base."""

    data: SourceTable
    finetune: FinetuneSettings = FinetuneSettings()
    engine: EngineSettings = EngineSettings()
    shard: ShardSetting = None
    """A share of the series, INDEX/COUNT, counted from 0: 3/16 is the fourth of 16. It writes into finetune.checkpoint
    and nothing else, first its trials, and in a second run its fits; `forecast commit finetune`, which sets `commit`,
    registers the version."""

    @model_validator(mode="after")
    def _shards_of_series(self) -> Self:
        if self.shard is not None and self.finetune.kind == "global":
            raise ValueError("finetune.kind: global trains weights that all series share, without shards; drop shard")
        if self.shard is not None and self.finetune.checkpoint is None:
            raise ValueError("finetune.checkpoint: missing; give the folder that all shards write into")
        return self


class BacktestConfig(JobConfig):
    """`forecast backtest`: `registry.alias` is the version to evaluate."""

    data: SourceTable
    backtest: BacktestSettings = BacktestSettings()
    output: OutputConfig = OutputConfig()
    engine: EngineSettings = EngineSettings()
    shard: ShardSetting = None
    """A share of the blocks, INDEX/COUNT, counted from 0: 3/16 is the fourth of 16. It writes its parts in output.path
    and nothing else; `forecast commit backtest`, which sets `commit`, joins them."""

    @model_validator(mode="after")
    def _shards(self) -> Self:
        if self.shard is not None and self.backtest.refit != "never":
            raise ValueError("shard needs backtest.refit=never: refits train models for all shards")
        if self.shard is not None and self.output.path is None:
            raise ValueError("shard needs output.path, a folder that all shards share")
        return self


class CalibrateConfig(JobConfig):
    """`forecast calibrate`: `registry.alias` is the version to calibrate."""

    data: SourceTable
    calibrate: CalibrateSettings = CalibrateSettings()
    output: OutputConfig = OutputConfig()
    engine: EngineSettings = EngineSettings()


class DistilConfig(JobConfig):
    """`forecast distil`: `registry.alias` is the teacher."""

    data: SourceTable
    distil: DistilSettings = DistilSettings()
    fit: LocalFit = FitConfig()
    output: OutputConfig = OutputConfig()


class ExplainConfig(JobConfig):
    """`forecast explain`: `registry.alias` is the version that forecasts."""

    data: SourceTable
    explain: ExplainSettings
    output: OutputConfig = OutputConfig()


class ReconcileConfig(JobConfig):
    """`forecast reconcile`: reads forecasts, not models."""

    reconcile: ReconcileSource
    output: OutputFolder


class PromoteConfig(JobConfig):
    """`forecast promote`: challenger against champion, from their backtests."""

    promote: PromoteSettings = PromoteSettings()


class RefreshConfig(JobConfig):
    """`forecast refresh`: fine-tune, backtest and promote in one go. `registry.alias` is the base."""

    data: SourceTable
    finetune: FinetuneSettings = FinetuneSettings()
    backtest: Annotated[BacktestSettings, AfterValidator(_of_trained_horizon)] = BacktestSettings()
    engine: EngineSettings = EngineSettings()


def _non_default_keys(key: str, value: Any, default: Any) -> list[str]:
    """Return the settings below a key whose values differ from the defaults."""
    if not isinstance(value, Mapping):
        return [] if value == default or (value == () and default == []) else [key]
    defaults = default if isinstance(default, Mapping) else {}
    return [
        f"{key}.{name}" for below, item in value.items() for name in _non_default_keys(below, item, defaults.get(below))
    ]


class ScoreConfig(JobConfig):
    """`forecast score`: `registry.alias` is the version that forecasts.

    It may also be a pretrained network of the package, gatecast-nano, which needs no registry. Then `data` has the
    settings to read the table, as in training, and `window.horizon` the number of steps.
    """

    data: ScoreTable
    window: ScoreWindow = ScoreWindow()
    score: ScoreSettings = ScoreSettings()
    output: ScoreOutput
    engine: EngineSettings = EngineSettings()
    shard: ShardSetting = None
    """A share of the shards, INDEX/COUNT, counted from 0: 3/16 is the fourth of 16. It writes its parts and nothing
    else; `forecast commit score`, which sets `commit`, publishes them."""

    @property
    def is_builtin(self) -> bool:
        """Whether a pretrained network of the package forecasts."""
        return self.registry.alias in names()

    @field_validator("data", "window", mode="before")
    @classmethod
    def _of_a_pretrained_network(cls, group: Any, info: ValidationInfo) -> Any:
        """Refuse settings that are fixed by the training of a registered model."""
        if isinstance(group, Mapping) and "registry" in info.data and info.data["registry"].alias not in names():
            defaults = dict.fromkeys(LATER) | DataConfig().without_source().model_dump(mode="json") | {"horizon": None}
            own_keys = defaults.keys() - SourceTable.model_fields.keys()
            fixed = [
                name for key in own_keys & set(group) for name in _non_default_keys(key, group[key], defaults[key])
            ]
            if fixed:
                raise PydanticCustomError("fixed_by_model", "fixed", {"keys": sorted(fixed)})
        return group

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.is_builtin and self.window.horizon is None:
            raise ValueError(f"window.horizon: missing; give the steps that {self.registry.alias} forecasts")
        if self.is_builtin and self.score.cold_start:
            raise ValueError("score.cold_start is for registered models; `forecast models add` makes one")
        if self.is_builtin and self.score.horizon is not None:
            raise ValueError(f"score.horizon is for registered models; {self.registry.alias} takes window.horizon")
        if self.is_builtin and (self.score.state is not None or self.score.shadow is not None):
            raise ValueError("score.state and score.shadow are for registered models; `forecast models add` makes one")
        return self

    @model_validator(mode="after")
    def _whole_jobs(self) -> Self:
        if self.shard is not None and self.score.force:
            raise ValueError("score.force is for whole jobs; a shard writes only the parts that are missing")
        if self.shard is not None and self.score.state is not None and len(self.score.cutoffs or ()) > 1:
            raise ValueError(
                "score.state with several cutoffs is for whole jobs: the state of each is published before the next; "
                "commit one cutoff after the other, or use engine=processes or engine=ray"
            )
        return self

    @model_validator(mode="after")
    def _scenario_files(self) -> Self:
        if self.score.scenario is not None and (self.output.sink != "parquet" or self.output.uri is not None):
            raise ValueError(
                "score.scenario compares Parquet files in output.path; write the plain forecasts and the scenario into "
                "another output.path, without output.sink and output.uri"
            )
        return self

    @model_validator(mode="after")
    def _two_folders(self) -> Self:
        if self.score.state is not None and Path(self.score.state).resolve() == Path(self.output.path).resolve():
            raise ValueError("score.state and output.path are the same folder; give each its own")
        return self


class MonitorConfig(JobConfig):
    """`forecast monitor`: `registry.alias` is the version whose forecasts are monitored."""

    data: SourceTable
    scores: SinkConfig
    monitor: MonitorSettings = MonitorSettings()
    output: OutputFolder

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.monitor.as_of is not None and self.data.until is not None:
            raise ValueError("monitor.as_of and data.until are both given; monitor.as_of hides what is later")
        if Path(self.scores.path).resolve() == Path(self.output.path).resolve():
            raise ValueError("scores.path and output.path are the same folder; give each its own")
        return self


class ScoresConfig(Config):
    """`forecast scores list`, `show` and `upgrade`: `scores` are the settings of `output` in the scoring job."""

    scores: SinkConfig
    show: ShowSettings = ShowSettings()


class RetainConfig(JobConfig):
    """`forecast retain`: `registry.name` is the registered model; `registry.alias` is not used."""

    retain: RetainSettings


class ReplayConfig(Config):
    """`forecast replay`."""

    replay: ReplaySettings = ReplaySettings()
    output: OutputFolder


class ModelsConfig(VerbConfig):
    """`forecast models show`: `registry.alias` is the version to show."""


class ListConfig(VerbConfig):
    """`forecast models list`."""

    list: ListSettings = ListSettings()


class DiffConfig(VerbConfig):
    """`forecast models diff`: `registry.alias` is the first version, `diff.against` the second."""

    diff: DiffSettings
    output: OutputConfig = OutputConfig()


class RollbackConfig(JobConfig):
    """`forecast models rollback`."""

    rollback: RollbackSettings = RollbackSettings()


class ExportConfig(VerbConfig):
    """`forecast models export`: `registry.alias` is the version; `data` is used to evaluate 8-bit weights."""

    data: SourceConfig = SourceConfig()
    export: ExportSettings = ExportSettings()
    output: OutputFolder


class RegisterConfig(JobConfig):
    """`forecast models register`: `registry.alias` is the alias of the version; by default the one its job would set.

    Only `forecast promote` makes a champion.
    """

    source: SourceFolder

    @field_validator("registry")
    @classmethod
    def _new_alias(cls, registry: RegistryConfig) -> RegistryConfig:
        alias = registry.alias or ""
        if alias.lower() in (CHAMPION, "latest") or re.fullmatch(r"[vV]?\d+", alias):
            raise ValueError(f"alias {alias!r} can't be given to a version here: leave it out, or choose another one")
        return registry


class AddConfig(JobConfig):
    """`forecast models add`: register a pretrained network of the package for the series of a table."""

    data: DataTable
    window: WindowConfig
    model: ModelConfig = ModelConfig()
    """Only `quantile_levels` is used."""
    add: AddSettings = AddSettings()


class DeleteConfig(JobConfig):
    """`forecast models delete`: `registry.alias` is the number of the version."""

    delete: DeleteSettings = DeleteSettings()


class ReportConfig(VerbConfig):
    """`forecast report`: on the version `registry.alias`, a run, or forecasts."""

    data: SourceConfig = SourceConfig()
    report: ReportSettings = ReportSettings()
    output: OutputFolder

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if sum(value is not None for value in (self.registry.alias, self.report.run, self.report.scores)) != 1:
            raise ValueError("give one of registry.alias, report.run and report.scores: what the report is of")
        if self.report.cutoff is not None and self.report.scores is None:
            raise ValueError("report.cutoff is one of report.scores; give that folder, too")
        return self


class CompareConfig(VerbConfig):
    """`forecast compare`: `data` is the table as it is now, `scores` the output of `forecast score`."""

    data: SourceConfig
    scores: OutputFolder
    compare: CompareSettings = CompareSettings()
    output: OutputFolder


class UiConfig(VerbConfig):
    """`forecast ui`."""

    ui: UiSettings = UiSettings()


class ServerConfig(Config):
    """`forecast server`."""

    server: ServerSettings = ServerSettings()


class RunsConfig(Config):
    """`forecast runs`."""

    runs: RunsSettings = RunsSettings()
    ledger: LedgerConfig = LedgerConfig()


class SyncConfig(VerbConfig):
    """`forecast runs sync`."""

    ledger: LedgerConfig = LedgerConfig()


class SchedulerConfig(Config):
    """`forecast schedule`."""

    schedule: ScheduleSettings = ScheduleSettings()
    ledger: LedgerConfig = LedgerConfig()
