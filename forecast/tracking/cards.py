"""Model cards: the descriptions of versions and registered models, in Markdown.

A card ends with a marker: text below it is kept, and a description without the marker is not replaced. The marker is
not at the beginning, as MLflow's lists show the first line.
"""

import re
from typing import Final

from forecast.tracking.versions import Version

_MARKER: Final = "<!-- gatecast: above is replaced by each backtest and promotion, below is yours -->"
_ACCURACY: Final = "- Accuracy: "
CHART_NAME: Final = "accuracy by version"
"""Name of the run that charts the accuracy of versions."""


def card_of(description: str) -> str:
    """Return the card in a description, empty without one."""
    card, marker, _ = description.partition(_MARKER)
    return card.strip() if marker else ""


def with_card(description: str, card: str) -> str | None:
    r"""Return a description with another card; None if it is the same, or text of somebody else.

    >>> with_card("", "new").partition("<!--")[0], with_card("Our own words", "new")
    ('new\n\n', None)
    """
    _, marker, rest = description.partition(_MARKER)
    if description.strip() and not marker:
        return None
    text = f"{card}\n\n{_MARKER}{rest}"
    return None if text == description else text


def note_of(card: str) -> str:
    """Return the card without its accuracy, which is later than the model."""
    return "\n".join(line for line in card.splitlines() if not line.startswith(_ACCURACY))


def with_accuracy(card: str, accuracy: str) -> str:
    r"""Return the card of a version with the result of its latest backtest.

    >>> with_accuracy("- Accuracy: not backtested yet\n\nUse it", "MASE 0.9")
    '- Accuracy: MASE 0.9\n\nUse it'
    """
    return re.sub(rf"^{re.escape(_ACCURACY)}.*$", lambda _: f"{_ACCURACY}{accuracy}", card, flags=re.MULTILINE)


def version_card(purpose: str, facts: dict[str, str], name: str) -> str:
    """Return the card of a version: its purpose, facts, and how to use it."""
    lines = [f"- {label}: {' '.join(text.split())}" for label, text in facts.items()]
    usage = [
        f"    forecast score registry.name={name} registry.alias=VERSION data.path=TABLE output.path=FOLDER",
        f'    mlflow.pyfunc.load_model("models:/{name}/VERSION").predict(table)',
    ]
    return "\n".join([purpose, "", *lines, f"{_ACCURACY}not backtested yet", "", "Use it with", "", *usage])


def model_card(name: str, champion: Version | None, card: str, since: str = "") -> str:
    """Return the card of a registered model: its champion with that version's card, or the first version's card."""
    if champion is None:
        return (
            f"{card}\n\nNo version is champion yet: `forecast backtest registry.name={name}` and "
            f"`forecast promote registry.name={name}` choose one."
        )
    moment = f", since {since[:16].replace('T', ' ')} UTC" if since else ""
    usage = card.replace("registry.alias=VERSION ", "").replace(f"models:/{name}/VERSION", f"models:/{name}@champion")
    return (
        f"Champion: v{champion.number}{moment}\n\n{usage}\n\n"
        f"The run `{CHART_NAME}` of the experiment `{name}` charts the accuracy of all versions."
    )
