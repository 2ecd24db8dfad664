"""Calibration: how far quantiles are off on the test part of M4, and the wQL, before and after.

`python -m benchmarks calibrate [TASK ...] [KEY=VALUE ...]` trains with the preset of a task (m4_hourly and m4_weekly
when none is named) and four horizons held out, calibrates on cutoffs among these, and looks at the test part once.
"""

import numpy as np

from benchmarks.accuracy import TASKS, configured, data_folder, tested
from forecast.calibration.calibrate import calibrate
from forecast.config import CalibrateSettings
from forecast.data.read import read_panel
from forecast.data.windows import windows_at_ends
from forecast.prediction.predict import predict
from forecast.training.fit import fit


def main(*argv: str) -> None:
    """Print a table for each task."""
    settings = ["fit.holdout_windows=4", *(given for given in argv if "=" in given)]
    for name in [given for given in argv if "=" not in given] or ["m4_hourly", "m4_weekly"]:
        task = TASKS[name]
        if (folder := data_folder(task, name)) is None:
            continue
        config = configured(task, folder, settings)
        loaded = read_panel(config.data, config.window.horizon)
        groups = {"data": loaded.data, "window": config.window, "model": config.model, "fit": config.fit}
        model = fit(loaded.panel, categories=loaded.categories, **groups).artifact
        levels = np.array(model.model.quantile_levels)
        actual = tested(loaded.panel, folder, model.horizon)
        print(f"\n{name:<17}{'off by':>16}{'in 80 %':>10}{'wQL':>10}")
        for method, shrink in (("none", False), ("split", False), ("split", True), ("adaptive", True)):
            made = model
            if method != "none":
                wanted = CalibrateSettings(method=method, shrink=shrink, holdout_windows=0, check_windows=0)
                made = calibrate(model, loaded.panel, wanted).artifact
            stated = predict(made, loaded.panel, windows_at_ends(loaded.panel)).tuned.astype(np.float64)
            error = actual[..., None] - stated
            off = np.abs((error <= 0).mean((0, 1)) - levels).mean()
            inside = ((actual >= stated[..., 0]) & (actual <= stated[..., -1])).mean()
            wql = 2 * np.maximum(levels * error, (levels - 1) * error).mean(-1).sum() / np.abs(actual).sum()
            label = f"{method}, shrunk" if shrink else method
            print(f"{label:<17}{off:>16.2%}{inside:>10.1%}{wql:>10.4f}", flush=True)
