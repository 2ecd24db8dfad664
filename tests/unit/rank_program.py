"""A program that Slurm starts several times: `python rank_program.py FOLDER` trains on the table there.

It saves both models of rank 0, and the messages of all ranks about a third training, in which rank 1 is killed.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import forecast as fc
from forecast.errors import GatecastError
from forecast.training.lightning_module import ForecastModule
from forecast.training.result import FitResult

CLOSED_FORM: dict[str, Any] = {"max_steps": 0}
NETWORK: dict[str, Any] = {"max_steps": 12, "validation_every": 4, "learning_rate": 2e-2, "ema_decay": 0.9}


def train(folder: Path, fit: dict[str, Any], **settings: Any) -> FitResult:
    """Train a small model: by its linear skip with exponential smoothing, or by its network without both."""
    closed = fit is CLOSED_FORM
    model = {"hidden_size": 8, "decoder_size": 4, "dropout": 0.0, "init": None, "smoothing": closed, "skip": closed}
    fit = {"origins": 8, "accelerator": "cpu", "final": False, **fit, **settings}
    return fc.train(folder / "panel.parquet", horizon=7, context_length=28, model=model, fit=fit)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["SLURM_PROCID"]
    for name, fit in (("closed_form", CLOSED_FORM), ("network", NETWORK)):
        result = train(folder, fit, batch_size=4, launcher="slurm")
        torch.save([result.artifact.network.state_dict(), result.curve, result.summary], folder / f"{name}-{rank}.pt")
    step = ForecastModule.training_step

    def killed(module: ForecastModule, *arguments: Any) -> torch.Tensor:
        if rank == "1" and module.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, *arguments)

    ForecastModule.training_step = killed
    try:
        train(folder, NETWORK, batch_size=4, launcher="slurm")
    except GatecastError as error:
        (folder / f"error-{rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
