"""The folder of a watch: its id, a folder per day, and one plotly.min.js for all pages."""

import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.data.files import write_parquet_atomic, write_text_atomic

if TYPE_CHECKING:
    from forecast.monitoring.result import MonitorResult

PLOTLY: Final = "../plotly.min.js"
"""Path of plotly.min.js, relative to a page."""
_ID: Final = ".watch"
_TABLES: Final = ("scores", "metrics", "cutoffs", "alarms", "anomalies", "drift", "fva", "pairs")
_CONTENT: Final = "monitor.json"

_LOG = logging.getLogger(__name__)


class WatchFolder:
    """The folder `output.path` of `forecast monitor`. The caller holds its lock.

    The id links runs in MLflow to the watch: folders with the same path on other machines have other ids.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        file = self.path / _ID
        if not file.exists():
            write_text_atomic(f"{uuid.uuid4().hex}\n", file)
        self.id = file.read_text(encoding="utf-8").strip()

    def day(self, as_of: str) -> Path:
        """Return the folder of a day."""
        return self.path / f"as_of={as_of.replace(':', '%3A')}"

    def content(self, as_of: str) -> dict[str, Any]:
        """Return the content of a day's monitor.json, empty if it is missing or damaged."""
        try:
            content = json.loads((self.day(as_of) / _CONTENT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, as_of: str, evaluation: "MonitorResult", content: Mapping[str, object], page: str) -> list[Path]:
        """Write tables and page of a day, monitor.json last; return the files."""
        from forecast.reports.page import plotly_source

        folder, plotly = self.day(as_of), plotly_source()
        script = folder / PLOTLY
        if not script.exists() or script.read_text(encoding="utf-8") != plotly:
            write_text_atomic(plotly, self.path / script.name)
        for name in _TABLES:
            write_parquet_atomic(getattr(evaluation, name), folder / f"{name}.parquet")
        write_text_atomic(page, folder / "monitor.html")
        write_text_atomic(json.dumps(content, indent=1) + "\n", folder / _CONTENT)
        return sorted(file for file in folder.iterdir() if not file.name.startswith("."))

    def prune(self, keep: int, as_of: str) -> int:
        """Remove all days but the latest `keep` and that of `as_of`; return the number removed."""
        days = sorted(path for path in self.path.glob("as_of=*") if path.is_dir() and not path.is_symlink())
        removed = 0
        for folder in days[:-keep]:
            if folder == self.day(as_of):
                continue
            try:
                shutil.rmtree(folder)
                removed += 1
            except OSError as error:
                _LOG.warning("can't remove %s: %s", folder, error.strerror or error)
        return removed
