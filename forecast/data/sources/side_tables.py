"""Separate tables of covariates: later verbs reuse those of training if none are named."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from forecast.config import DataConfig, SourceConfig
from forecast.data.sources import tables
from forecast.data.sources.csv_files import CsvFormat
from forecast.data.sources.json_lines import is_lines
from forecast.data.sources.open import is_prepared
from forecast.errors import DataError, listing
from forecast.redaction import redacted

_KINDS: Final = ("known", "static")
_LOG = logging.getLogger(__name__)


def side_tables(source: SourceConfig) -> dict[str, str]:
    """Return the paths of the covariate tables of a source, by their settings, as absolute paths.

    An address with a secret is omitted.
    """
    paths = {f"data.{kind}_path": path for kind in _KINDS if (path := getattr(source, f"{kind}_path"))}
    return {
        key: path if "://" in path else str(Path(path).absolute())
        for key, path in paths.items()
        if redacted(path) == path
    }


def with_side_tables(source: SourceConfig, remembered: Mapping[str, str], data: DataConfig) -> SourceConfig:
    """Return a source completed by the remembered covariate tables that it does not name.

    A table that contains the columns, or a prepared panel, needs none. `data` are the settings of the model. Raises
    DataError if a remembered table is needed and does not exist.
    """
    unnamed = [kind for kind in _KINDS if f"data.{kind}_path" in remembered and not getattr(source, f"{kind}_path")]
    if not unnamed or is_prepared(source.path) or (source.path and is_lines(source.path)):
        return source
    csv_format = CsvFormat(source.separator or data.separator)
    present = {*tables.scan(source.path, columns=(), csv_format=csv_format).collect_schema()} if source.path else set()
    paths: dict[str, str] = {}
    for kind in unnamed:
        key, names = f"data.{kind}_path", data.side_columns(kind)
        if not names or present.issuperset(names):
            continue
        path = remembered[key]
        if "://" not in path and not any(character in path for character in "*?[") and not Path(path).exists():
            raise DataError(
                f"{key}: the table of {listing(names)} that the model was trained with, {path}, is not there any more; "
                f"give {key}"
            )
        _LOG.info("%s=%s, as in training", key, path)
        paths[f"{kind}_path"] = path
    return source.model_copy(update=paths)
