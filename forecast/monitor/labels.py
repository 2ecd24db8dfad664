"""Values of the columns `model`, `window`, `status` and `group`."""

from typing import Final

FORECAST: Final = "forecast"
"""In the column `model`: what was forecast, besides SOURCE_SEASONAL_NAIVE."""
RECENT: Final = "recent"
HISTORY: Final = "history"
"""In the column `window`."""
ALARM: Final = "alarm"
NORMAL: Final = "normal"
NO_SCALE: Final = "no scale"
FEW: Final = "few observations"
NO_REFERENCE: Final = "no reference"
"""In the column `status` of alarms: the first two are judged."""
ALL: Final = "all"
AGE: Final = "age"
TIME: Final = "time"
"""In the column `group`, besides the names of segments."""
