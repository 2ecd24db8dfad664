"""The context length of a model whose settings do not give one."""

from typing import Final

from forecast.data.time.frequency import Frequency

# Limits in steps, and as a share of a typical series.
_LEAST_CONTEXT: Final = 32
_MOST_CONTEXT: Final = 1024
_SHARE_OF_LENGTH: Final = 0.6
# Longer windows suffice for a linear skip, and smoothing them step by step would be slow.
MAX_SMOOTHED: Final = 160
# Seasons, and minimum number of steps, of a window for exponential smoothing.
_SEASONS: Final = 5
_LEAST_SMOOTHED: Final = 20
# Minimum length: a scale is estimated over half of it.
_SHORTEST: Final = 4


def default_context(frequency: Frequency, season_length: int, horizon: int, typical_length: float, rows: float) -> int:
    """Return the context length for a panel whose series typically have `rows` steps, `typical_length` to train on.

    The context is two of the next longer cycle (two weeks for hours, eight weeks for days), or two seasons if there is
    no longer cycle; at least two horizons and 32 steps, at most 1,024 steps and three fifths of a typical series, but
    two seasons or horizons in any case; a multiple of the season if there is one.

    For weeks and longer steps it is five seasons, or at least 20 steps, if that is short enough for exponential
    smoothing, up to a whole typical series: smoothing gains from a longer history.

    A season extends the minimum only if a typical series holds it twice; a season of more than 512 steps only if twice
    its length is at most three fifths of a typical series.
    """
    cycles = 7 if frequency.sub_daily else 4 if frequency.unit in ("d", "bd") else 1
    max_share = int(_SHARE_OF_LENGTH * typical_length)
    min_length = 2 * max(season_length, horizon)
    cycle = max(cycles * frequency.season_length, season_length) if season_length > 1 else 1
    length = min(max(2 * cycle, min_length, _LEAST_CONTEXT), _MOST_CONTEXT, max_share)
    if not frequency.sub_daily and frequency.unit not in ("d", "bd") and _SEASONS * cycle <= MAX_SMOOTHED:
        length = max(min(max(_SEASONS * cycle, _LEAST_SMOOTHED), int(rows)), _SHORTEST)
    if min_length > rows or (min_length > _MOST_CONTEXT and min_length > max_share):
        min_length = max(min(2 * horizon, int(rows)), 1)
    if length <= min_length:
        return min_length
    return length if length < season_length else max(length - length % season_length, min_length)
