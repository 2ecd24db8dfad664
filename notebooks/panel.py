"""The panel that the notebooks share: hourly loads of made-up meters."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl

START = datetime(2024, 1, 1)


def example_panel(days: int = 35, seed: int = 0) -> pl.DataFrame:
    """Return twelve hourly series: series_id, timestamp, target, temperature, kind.

    Homes and shops have a day and a week of their kind. The pumps each run on a cycle of their own that is no day: no
    model that is the same for all series can know it.
    """
    rng = np.random.default_rng(seed)
    hours = np.arange(24 * days)
    hour, weekday = hours % 24, hours // 24 % 7
    weather = 8 + 6 * np.sin(2 * np.pi * hours / (24 * 30)) + 3 * np.sin(2 * np.pi * (hour - 9) / 24)
    parts = []
    for number in range(12):
        kind = ("home", "shop", "pump")[number // 4]
        level, size = rng.uniform(15, 40), rng.uniform(3, 6)
        if kind == "home":
            shape = np.exp(-((hour - 7.5) ** 2) / 6) + 1.6 * np.exp(-((hour - 19.5) ** 2) / 8) + 0.3 * (weekday >= 5)
        elif kind == "shop":
            shape = 1.5 * ((hour >= 8) & (hour < 19)) * (weekday < 6) + 0.2
        else:
            shape = np.sin(2 * np.pi * hours / (17 + 5 * (number % 4)) + number)
        noise = np.zeros(len(hours))
        shocks = rng.normal(0, 0.12, len(hours))
        for step in range(1, len(hours)):
            noise[step] = 0.8 * noise[step - 1] + shocks[step]
        temperature = weather + rng.normal(0, 0.7, len(hours))
        heating = 0.05 * np.clip(15 - temperature, 0, None) * (kind != "pump")
        parts.append(
            pl.DataFrame(
                {
                    "series_id": [f"{kind}-{number % 4}"] * len(hours),
                    "timestamp": [START + timedelta(hours=int(step)) for step in hours],
                    "target": (level + size * (shape + heating + noise)).round(3),
                    "temperature": temperature.round(2),
                    "kind": [kind] * len(hours),
                }
            )
        )
    return pl.concat(parts)
