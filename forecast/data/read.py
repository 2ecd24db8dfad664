"""Reading a panel from any source: files, a prepared panel, or a database."""

import re

from forecast.config import DataConfig
from forecast.data.ingest.load import load_panel
from forecast.data.ingest.loaded import Loaded
from forecast.data.ingest.validate import TRUTH, Categories
from forecast.data.prepared.open import open_prepared
from forecast.data.sources.open import is_prepared, open_tables, unchanged


def read_panel(
    data: DataConfig, horizon: int, categories: Categories | None = None, *, in_memory: bool = True
) -> Loaded:
    """Return the panel that `data` describes, with known covariates for `horizon` steps ahead.

    `categories` are those of a trained model, if there is one. A prepared panel is memory-mapped, anything else is
    read; without `in_memory`, a prepared panel in an object store by the ranges in use. Raises ConfigError and
    DataError, also for files that change during reading.
    """
    if data.path is not None and is_prepared(data.path):
        return open_prepared(data.path, data, horizon, categories, in_memory=in_memory)
    with unchanged(data) as check_source:
        loaded = load_panel(open_tables(data, text_columns(data, categories)), data, horizon, categories)
        check_source()
    return loaded


def text_columns(data: DataConfig, categories: Categories | None) -> set[str]:
    """Return the columns besides series_id to read as text, even if they look like numbers.

    Columns of truth values and classes that are whole numbers are excluded: training read them as such.
    """
    texts = {name for name, values in (categories or {}).items() if not {*values} <= {*TRUTH}}
    if all(re.fullmatch(r"0|-?[1-9]\d*", name) for name in (categories or {}).get(data.columns.target, ())):
        texts.discard(data.columns.target)
    return texts
