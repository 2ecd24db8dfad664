"""Scenarios of a scoring job: their checks, differences and page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from forecast.config import ScoreConfig
from forecast.errors import GatecastError

if TYPE_CHECKING:
    from datetime import datetime

    from forecast.artifact import Artifact
    from forecast.data.ingest.loaded import Loaded
    from forecast.data.panel import Panel
    from forecast.scoring.parts import Output
    from forecast.scoring.scenarios import Scenario
    from forecast.tracking.run import Run

PAGE: Final = "difference.html"


def open_scenario(
    config: ScoreConfig, artifact: "Artifact", loaded: "Loaded", cutoffs: "Sequence[datetime | None]"
) -> "Scenario | None":
    """Return the scenario of score.scenario, None without it. Raises ConfigError as `Scenario`."""
    from forecast.scoring.scenarios import Scenario

    if config.score.scenario is None:
        return None

    def reread(content: Mapping[str, Any]) -> "Panel | None":
        from forecast.scoring.content import TABLES

        tables = content.get(TABLES, {})
        keys = {name: tables.get(f"data.{name}") for name in ("path", "known_path", "static_path")}
        if keys["path"] is None:
            return None
        source = config.data.source().model_copy(update={**keys, "uri": None, "query": None})
        try:
            return artifact.open(source, cutoffs).panel
        except GatecastError:
            return None

    return Scenario(config.score.scenario, config.output, artifact, loaded, reread)


def log_differences(run: "Run", scenario: "Scenario", outputs: "Sequence[Output]") -> str:
    """Write the differences of all cutoffs and the page of the last one; return a text about it. Raises OutputError."""
    from forecast.data.files import write_text_atomic
    from forecast.names import SCENARIO
    from forecast.reports.scenario_page import scenario_page
    from forecast.scoring.differences import write_difference

    differences = [write_difference(scenario, output.content) for output in outputs]
    page, last = Path(scenario.output.path) / PAGE, differences[-1]
    write_text_atomic(scenario_page(scenario.name, last, outputs[-1].content), page)
    run.tags({SCENARIO: scenario.name})
    run.file(page)
    return f", scenario {scenario.name}: {last}, {page}"
