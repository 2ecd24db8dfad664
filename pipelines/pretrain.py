"""`forecast pretrain`: a stream of synthetic series -> a network for any series, as a checkpoint with its card."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forecast.config import PretrainConfig, PretrainSettings
from forecast.errors import ConfigError
from pipelines.jobs import console
from pipelines.jobs.job import note, recorded

if TYPE_CHECKING:
    import torch

    from forecast.pretraining.training import Progress, Run

# Distance of the validation stream's seeds from those of training.
_HELD_OUT = 1_000_003


@recorded(PretrainConfig)
def main(config: PretrainConfig) -> None:
    """Run the verb."""
    card, line = run(config)
    note(output=str(card))
    print(f"{card}: {line}")


def run(config: PretrainConfig) -> tuple[Path, str]:
    """Train or resume, log, and write the checkpoint; return the path of its card and a line about it."""
    from forecast.data.files import locked
    from forecast.models.runtime.torch_setup import prepare
    from forecast.models.universal.checkpoint import write_checkpoint
    from forecast.pretraining.batches import Pool, Series
    from forecast.pretraining.training import Run
    from forecast.pretraining.validation import validate
    from forecast.synthetic.stream import Stream
    from pipelines.jobs.reading import open_registry

    settings, folder = config.pretrain, Path(config.output.path)
    device, stream = _device(settings), Stream(seed=settings.seed)
    held_out = Series(*Stream(seed=settings.seed + _HELD_OUT).batch(0)[:4])
    registry = open_registry(config)
    registry.check_runs()
    with locked(folder), registry.run("pretrain", config) as log, console.stage("pretrain") as stage:
        prepare()
        training = Run(_shape(settings), _schedule(settings), device)
        resumed = training.resume(folder, key="output.path")
        start, first = time.perf_counter(), training.series
        figures: dict[str, float] = {}

        def save() -> Path:
            facts = _facts(config, training, figures, stream.families)
            return write_checkpoint(training.average, folder, settings.name, facts)

        def report(progress: "Progress") -> None:
            seconds = time.perf_counter() - start
            figures.update(
                loss=progress.loss,
                series=float(progress.series),
                cpu_hours=progress.cpu_seconds / 3600,
                series_per_second=(progress.series - first) / seconds,
                **validate(training.average.cpu().eval(), held_out),
            )
            save()
            training.average.to(training.device)
            log.curve([(progress.step, figures)])
            stage.update(
                f"step {progress.step:,} of {settings.steps:,}, loss {progress.loss:.4f}, validation "
                f"{figures['validation/mae']:.4f}"
            )

        pool = Pool(lambda index: Series(*stream.batch(index)[:4]), settings.seed)
        network = training.train(pool, folder, settings.every, report)
        if not figures:  # A run that is complete already.
            figures.update(validate(network.cpu().eval(), held_out))
        card = save()
        for path in (card, card.with_suffix(".safetensors")):
            log.file(path, "checkpoint")
        stage.note(steps=training.step, resumed=resumed)
    return card, (
        f"{training.step:,} steps, {training.series:,} series, {training.cpu_seconds / 3600:.2f} CPU hours, error "
        f"{figures['validation/mae']:.3f} of seasonal naive's on held-out series, run {log.id}"
    )


def _shape(settings: PretrainSettings) -> Any:
    from forecast.models.universal.network import Shape

    return Shape(settings.cell, settings.hidden_size, settings.num_layers)


def _schedule(settings: PretrainSettings) -> Any:
    from forecast.pretraining.training import Schedule

    return Schedule(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        batch_size=settings.batch_size,
        n_origins=settings.origins,
        seed=settings.seed,
    )


def _device(settings: PretrainSettings) -> "torch.device":
    import torch

    available = torch.cuda.is_available()
    if settings.accelerator == "gpu" and not available:
        raise ConfigError("pretrain.accelerator=gpu: there is no GPU here; choose cpu, or auto")
    return torch.device("cuda" if available and settings.accelerator != "cpu" else "cpu")


def _facts(
    config: PretrainConfig, training: "Run", figures: dict[str, float], families: tuple[str, ...]
) -> dict[str, Any]:
    """Return the facts of a card besides shape and digest."""
    return {
        "settings": config.pretrain.model_dump(mode="json"),
        "steps": training.step,
        "series_seen": training.series,
        "cpu_hours": round(training.cpu_seconds / 3600, 3),
        "data": "synthetic series alone",
        "families": families,
        "licence": "Apache-2.0",
        "validation": {name.removeprefix("validation/"): value for name, value in figures.items() if "/" in name},
    }
