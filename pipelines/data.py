"""`forecast data nyc-flights OUT`: write the demo panel."""

from pathlib import Path
from typing import Final

from forecast.data.io import write_parquet_atomic
from forecast.data.nyc_flights import nyc_flights
from forecast.errors import ConfigError
from forecast.names import SERIES_ID

USAGE: Final = """usage: forecast data nyc-flights OUT

Write the demo panel, hourly departures of 2013 from New York's airports with the weather, to OUT/panel.parquet.
Needs the demo extra: pip install 'gatecast[demo]'."""


def main(argv: list[str]) -> None:
    """Run the verb."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    if len(argv) != 2 or argv[0] != "nyc-flights":
        raise ConfigError(USAGE)
    path = Path(argv[1]) / "panel.parquet"
    panel = nyc_flights()
    write_parquet_atomic(panel, path)
    print(f"{path}: {panel.height:,} rows, {panel[SERIES_ID].n_unique()} series")
