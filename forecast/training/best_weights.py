"""The best weights of a training. Nothing here imports Lightning, which takes seconds: not every training needs it."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from forecast.models.network.ensemble import Forecaster
from forecast.names import TRAIN_LOSS, VAL_LOSS

if TYPE_CHECKING:
    import pytorch_lightning as lightning

    from forecast.training.lightning_module import ForecastModule


class BestWeights:
    """Records the curve, keeps the best validated weights, and stops when patience or the budget is spent.

    It also stops when `watch`, which gets the network with averaged weights at each validation, returns True.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: float,
        patience: int,
        progress: Callable[[float, str], None] | None,
        watch: Callable[[Forecaster, int], bool] | None = None,
    ) -> None:
        self.best_loss = loss
        self.best = _copied(network)
        """Weights of the best validation; the initial ones until a validation is better."""
        self.best_step = 0
        self.curve: list[tuple[int, dict[str, float]]] = [(0, {VAL_LOSS: loss})]
        self._patience = patience
        self._waited = 0
        self._progress = progress
        self._watch = watch

    def state(self) -> dict[str, Any]:
        """Return all but the best weights, as JSON."""
        return {
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "curve": self.curve,
            "waited": self._waited,
        }

    def restore(self, state: Mapping[str, Any], best: dict[str, Tensor]) -> None:
        """Restore the state of a training that is resumed."""
        self.best_loss, self.best_step, self._waited = state["best_loss"], state["best_step"], state["waited"]
        self.curve = [(step, values) for step, values in state["curve"]]
        self.best = {name: values.to(self.best[name].device) for name, values in best.items()}

    def on_train_batch_end(self, trainer: "lightning.Trainer", module: "ForecastModule") -> None:
        """Record the training loss, report the progress, and stop at the end of the budget."""
        step = trainer.global_step
        if step % 10 == 0:
            self.curve.append((step, {TRAIN_LOSS: float(trainer.callback_metrics[TRAIN_LOSS])}))
        share = module.budget.spent(step)
        if self._progress and step % 5 == 0:
            self._progress(share, f"step {step}, loss {self.best_loss:.4f}")
        if share >= 1.0:
            trainer.should_stop = True

    def on_validation_epoch_end(self, trainer: "lightning.Trainer", module: "ForecastModule") -> None:
        """Compare the loss with the best one. The weights are the averaged ones here."""
        loss = module.validation_loss()
        self.curve.append((trainer.global_step, {VAL_LOSS: loss}))
        self._waited += 1
        if loss < self.best_loss:
            self.best_loss, self.best_step, self._waited = loss, trainer.global_step, 0
            self.best = _copied(module.network)
        # A `watch` does not change the training: the random numbers stay the same.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            stopped = self._watch is not None and self._watch(module.network, trainer.global_step)
        if stopped or self._waited >= self._patience:
            trainer.should_stop = True


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.detach().clone() for name, values in network.state_dict().items()}
