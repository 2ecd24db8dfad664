"""What synthetic series teach about the future: trends persist, and rarely leave the past far behind."""

import numpy as np

from forecast.synthetic import Stream

HORIZON = 8


def test_the_drift_of_yearly_series_goes_on_after_the_end() -> None:
    batch = Stream(seed=9, n_series=2_048, context=128, horizon=HORIZON, artefacts=False).batch(0)
    steps = np.arange(1, HORIZON + 1)
    last, drift = [], []
    for row in np.flatnonzero((batch.season_length == 1) & (batch.length >= 12) & (batch.length <= 60)):
        values = batch.values[row, -HORIZON - batch.length[row] :].astype(np.float64)
        past, future = values[:-HORIZON], values[-HORIZON:]
        changes = np.diff(past)
        unit = np.abs(changes).mean()
        if unit > 0:
            last.append(min(np.abs(future - past[-1]).mean() / unit, 20))
            drift.append(min(np.abs(future - past[-1] - changes.mean() * steps).mean() / unit, 20))
    assert len(last) > 200
    assert np.mean(drift) < 0.95 * np.mean(last)


def test_few_trends_leave_their_past_far_behind() -> None:
    stream = Stream(seed=3, n_series=1_024, context=128, horizon=16, shares={"trends": 1.0}, mixing=0, artefacts=False)
    batch = stream.batch(0)
    leaps, long = [], batch.length >= 16
    for row, length in zip(batch.values[long].astype(np.float64), batch.length[long], strict=True):
        past, future = row[-16 - length : -16], row[-16:]
        leaps.append(np.abs(future - past.mean()).max() / np.ptp(past))
    assert np.mean(np.asarray(leaps) > 10) < 0.03
