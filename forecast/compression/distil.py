"""Distillation: training of a small model on the forecasts of a large one."""

import copy
import time
from dataclasses import dataclass

import polars as pl
import torch

from forecast.artifact import Artifact
from forecast.backtesting.backtest import backtest
from forecast.backtesting.result import Contender
from forecast.config import BacktestSettings, DistilSettings, FitConfig, ModelConfig
from forecast.data.panel import Panel
from forecast.errors import ConfigError, DataError
from forecast.models.runtime.onnx import example_windows
from forecast.names import MODEL
from forecast.training.fit import fit
from forecast.training.result import Curve, Progress, Summary
from forecast.training.split import split_panel
from forecast.training.teacher import Teacher

TEACHER, STUDENT = "teacher", "student"
# Windows whose CPU time is measured, and repetitions, of which the fastest counts.
_N_TIMED, _ROUNDS = 256, 3
_SHRINK, _MIN_SIZE = 4, 4


@dataclass(frozen=True, repr=False)
class DistilResult:
    """A student model, its training, and a comparison with the teacher."""

    artifact: Artifact
    comparison: pl.DataFrame
    """model (`teacher`, `student`), parameters, bytes (float32), cpu_ms (of a window, by the network), then mase, wql
    and the others of `metrics.summarise`, on the held-out windows."""
    curve: Curve
    summary: Summary

    def __repr__(self) -> str:
        return f"DistilResult({self.line}; {self.artifact!r})"

    @property
    def line(self) -> str:
        """The comparison in one line."""
        teacher, student = self.comparison.rows(named=True)
        parts = [f"{name.upper()} {student[name]:.4f} ({teacher[name]:.4f})" for name in ("mase", "wql")]
        return (
            f"{', '.join(parts)}, {student['parameters']:,} parameters ({teacher['parameters']:,}), "
            f"{student['cpu_ms']:.3f} ms a window ({teacher['cpu_ms']:.3f}) on {student['n_windows']:,} windows"
        )


def distil(
    artifact: Artifact,
    panel: Panel,
    settings: DistilSettings,
    config: FitConfig,
    *,
    progress: Progress | None = None,
) -> DistilResult:
    """Return a model with smaller recurrent layers, trained on the forecasts of `artifact` and on the panel.

    The teacher is the model without changes per series and calibration. At each origin of a window, the loss is that
    of the student's forecast on the actuals and, with share `weight`, its expectation under the teacher's distribution,
    tails included, which is least if the student's distribution equals the teacher's (the cross-entropy of
    distillation, Hinton, Vinyals & Dean 2015, for the losses of the heads). Context length, segments, scale and head
    are the teacher's; closed form and stopping are those of `fit`. The student's final fit also learns from the
    evaluated weights of the teacher.

    Raises ConfigError for classes and models that sample paths; DataError if there is no cutoff that neither has seen.
    """
    if artifact.classes is not None or artifact.network.n_paths > 1:
        raise ConfigError("model: quantiles are distilled, of models that are neither of classes nor autoregressive")
    base = artifact.base().uncalibrated()
    horizon, shape = base.horizon, base.network.shape
    last_seen = max(base.trained_until, split_panel(panel, horizon, config).trained_until)
    unseen = (panel.last_index - last_seen) // horizon
    if unseen < (settings.n_windows or 1):
        raise DataError(
            f"both models are compared on distil.n_windows={settings.n_windows or 1} cutoffs that neither has seen, "
            f"and there are {unseen:,}; lower it, raise fit.holdout_windows, or append data"
        )
    training = fit(
        panel,
        data=base.data,
        categories=base.categories,
        window=base.window.model_copy(update={"context_length": shape.context_length}),
        model=_student_model(base, settings),
        fit=config,
        progress=progress,
        teacher=Teacher(copy.deepcopy(base.network), settings.weight, base.digest()),
    )
    trained_until = max(training.artifact.trained_until, base.trained_until)
    student = training.artifact.child_of(artifact.digest(), trained_until=trained_until)
    pair = {TEACHER: base, STUDENT: student}
    comparison = backtest(
        {name: Contender(model_artifact, panel) for name, model_artifact in pair.items()},
        BacktestSettings(n_windows=settings.n_windows),
    )
    costs = pl.DataFrame([{MODEL: name, **_cost(model_artifact)} for name, model_artifact in pair.items()])
    return DistilResult(
        student, costs.join(comparison.summary, on=MODEL, maintain_order="left"), training.curve, training.summary
    )


def _student_model(base: Artifact, settings: DistilSettings) -> ModelConfig:
    """Return the model settings of the teacher with the size of the student."""
    size = settings.hidden_size or max(base.model.hidden_size // _SHRINK, _MIN_SIZE)
    same_depth = settings.num_layers == base.model.num_layers
    return base.model.model_copy(
        update={
            "hidden_size": size,
            "num_layers": settings.num_layers,
            "residual": base.model.residual and settings.num_layers > 1,
            "dilations": base.model.dilations if same_depth else (),
            "segment_length": base.network.shape.segment_length,
        }
    )


@torch.inference_mode()
def _cost(artifact: Artifact) -> dict[str, float]:
    """Return the size of a network, and the CPU time of its forward pass per window."""
    network, origins = artifact.network, torch.zeros(1, dtype=torch.long)
    batch, seconds = example_windows(network, _N_TIMED), []
    for _ in range(_ROUNDS):
        start = time.process_time()
        network(batch, origins)
        seconds.append(time.process_time() - start)
    tensors = [*network.parameters(), *network.buffers()]
    return {
        "parameters": sum(values.numel() for values in network.parameters()),
        "bytes": sum(values.numel() * values.element_size() for values in tensors),
        "cpu_ms": 1000 * min(seconds) / _N_TIMED,
    }
