"""The sink that `output.kind` names."""

from pathlib import Path

from forecast.config import SinkConfig
from forecast.errors import OutputError
from forecast.scoring.manifests import KINDS
from forecast.scoring.sinks.base import Sink
from forecast.scoring.sinks.parquet import ParquetSink


def open_sink(output: SinkConfig, group: str = "output") -> Sink:
    """Return the sink that the settings describe; a database is asked for an answer, and Delta Lake imported.

    `group` is that of the settings. Raises ConfigError and OutputError.
    """
    from forecast.scoring.sinks.delta import DeltaSink
    from forecast.scoring.sinks.sql import SqlSink

    folder = Path(output.path)
    held = next((path for kind in KINDS for path in (folder / kind).glob("*")), None)
    is_delta = any((folder / kind / "_delta_log").is_dir() for kind in KINDS)
    if held and output.sink in ("parquet", "delta") and (output.sink == "delta") != is_delta:
        raise OutputError(
            f"{folder} holds {'Delta Lake tables' if is_delta else 'Parquet files'}; choose another {group}.path"
        )
    if output.sink == "parquet":
        return ParquetSink(folder)
    if output.sink == "delta":
        return DeltaSink(folder)
    assert output.uri is not None
    return SqlSink(output.uri.get_secret_value(), output.table, f"{group}.uri", folder)
