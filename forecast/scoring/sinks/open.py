"""The sink that `output.sink` names."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from forecast.config import SinkConfig
from forecast.errors import OutputError
from forecast.scoring.manifests import KINDS
from forecast.scoring.sinks.base import Sink
from forecast.scoring.sinks.parquet import ParquetSink


def open_sink(output: SinkConfig, group: str = "output") -> Sink:
    """Return the sink of the settings, after connecting to a database or importing Delta Lake.

    `group` is the config group of the settings. Raises ConfigError and OutputError.
    """
    from forecast.scoring.sinks.delta import DeltaSink
    from forecast.scoring.sinks.objects import ObjectSink
    from forecast.scoring.sinks.sql import SqlSink

    folder = Path(output.path)
    existing = next((path for kind in KINDS for path in (folder / kind).glob("*")), None)
    is_delta = any((folder / kind / "_delta_log").is_dir() for kind in KINDS)
    if existing and output.sink in ("parquet", "delta") and (output.sink == "delta") != is_delta:
        raise OutputError(
            f"{folder} holds {'Delta Lake tables' if is_delta else 'Parquet files'}; choose another {group}.path"
        )
    if output.sink == "parquet" and output.uri is not None:
        if existing:
            raise OutputError(
                f"{folder} holds files of forecasts itself; choose another {group}.path for those of {group}.uri"
            )
        return ObjectSink(output.uri.get_secret_value(), f"{group}.uri", folder)
    if output.sink == "parquet":
        return ParquetSink(folder)
    if output.sink == "delta":
        return DeltaSink(folder)
    assert output.uri is not None
    return SqlSink(output.uri.get_secret_value(), output.table, f"{group}.uri", folder)


def open_stored(scores: SinkConfig, contents: Sequence[Mapping[str, Any]], group: str = "scores") -> Sink:
    """Return the sink that reads the forecasts of manifests, which may name the object store of their files.

    Raises ConfigError and OutputError.
    """
    from forecast.scoring.sinks.objects import stores_of

    if scores.sink == "parquet" and scores.uri is None and (stores := stores_of(contents)):
        scores = scores.model_copy(update={"uri": SecretStr(stores[-1])})
    return open_sink(scores, group)
