"""The context length of a model whose settings do not give one."""

from typing import Final

from forecast.data.time.frequency import Frequency

# In steps, and in shares of a typical series.
_LEAST_CONTEXT: Final = 32
_MOST_CONTEXT: Final = 1024
_SHARE_OF_LENGTH: Final = 0.6
# Windows of more steps are long enough for a line, and smoothing every step of them takes its time.
MAX_SMOOTHED: Final = 160
# Seasons and steps of a window that is smoothed.
_SEASONS: Final = 5
_LEAST_SMOOTHED: Final = 20
# A scale is taken over half of it.
_SHORTEST: Final = 4


def default_context(frequency: Frequency, season_length: int, horizon: int, typical_length: float, rows: float) -> int:
    """Return the context length for a panel whose series typically have `rows` steps, `typical_length` to train on.

    Two of the next longer cycle, two weeks of hours or eight of days, or two seasons where these have none; at least
    two horizons and 32 steps. Of more than a thousand steps no more than that many, and no more than three fifths of a
    typical series, but two seasons or horizons in any case; whole seasons where there are some.

    Of weeks and longer steps five seasons, or 20 steps, if these are short enough for exponential smoothing, and all of
    a typical series if need be: the more of it smoothing sees, the better.

    A season that a typical series does not hold twice is no reason for a longer context, and one of more than half a
    thousand steps is none unless two of it are three fifths of a typical series at most.
    """
    cycles = 7 if frequency.sub_daily else 4 if frequency.unit in ("d", "bd") else 1
    share = int(_SHARE_OF_LENGTH * typical_length)
    least = 2 * max(season_length, horizon)
    cycle = max(cycles * frequency.season_length, season_length) if season_length > 1 else 1
    wanted = min(max(2 * cycle, least, _LEAST_CONTEXT), _MOST_CONTEXT, share)
    if not frequency.sub_daily and frequency.unit not in ("d", "bd") and _SEASONS * cycle <= MAX_SMOOTHED:
        wanted = max(min(max(_SEASONS * cycle, _LEAST_SMOOTHED), int(rows)), _SHORTEST)
    if least > rows or (least > _MOST_CONTEXT and least > share):
        least = max(min(2 * horizon, int(rows)), 1)
    if wanted <= least:
        return least
    return wanted if wanted < season_length else max(wanted - wanted % season_length, least)
