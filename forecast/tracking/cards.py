"""Model cards: the descriptions of versions and registered models, in Markdown.

A card is between two markers: text around it is kept, and a description without markers is not replaced.
"""

import re
from typing import Final

from forecast.tracking.versions import Version

_BEGIN, _END = "<!-- gatecast -->", "<!-- /gatecast -->"
_CARD: Final = re.compile(f"{_BEGIN}\n(.*?)\n{_END}", re.DOTALL)
_ACCURACY: Final = "| Accuracy | "
CHART_NAME: Final = "accuracy by version"
"""Name of the run that charts the accuracy of versions."""


def card_of(description: str) -> str:
    """Return the card in a description, empty without one."""
    match = _CARD.search(description)
    return match[1] if match else ""


def with_card(description: str, card: str) -> str | None:
    r"""Return a description with another card; None if it is the same, or text of somebody else.

    >>> with_card("", "new"), with_card("Our own words", "new")
    ('<!-- gatecast -->\nnew\n<!-- /gatecast -->', None)
    """
    if description.strip() and not _CARD.search(description):
        return None
    block = f"{_BEGIN}\n{card}\n{_END}"
    text = _CARD.sub(lambda _: block, description, count=1) if description.strip() else block
    return None if text == description else text


def with_accuracy(card: str, accuracy: str) -> str:
    r"""Return the card of a version with the result of its latest backtest.

    >>> with_accuracy("| Accuracy | not backtested yet |\n\nScore", "MASE 0.9")
    '| Accuracy | MASE 0.9 |\n\nScore'
    """
    return re.sub(rf"^{re.escape(_ACCURACY)}.*$", lambda _: f"{_ACCURACY}{accuracy} |", card, flags=re.MULTILINE)


def version_card(purpose: str, rows: dict[str, str], name: str) -> str:
    """Return the card of a version: its purpose, facts, and how to use it."""
    cells = {label: re.sub(r"\s+", " ", text.replace("|", "\\|")) for label, text in rows.items()}
    table = ["| | |", "| --- | --- |", *(f"| {label} | {text} |" for label, text in cells.items())]
    usage = [
        f"    forecast score registry.name={name} registry.alias=VERSION data.path=TABLE output.path=FOLDER",
        f'    mlflow.pyfunc.load_model("models:/{name}/VERSION").predict(table)',
    ]
    return "\n".join([purpose, "", *table, f"{_ACCURACY}not backtested yet |", "", "Use it with", "", *usage])


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
        f"**Champion: v{champion.number}**{moment}\n\n{usage}\n\n"
        f"The run `{CHART_NAME}` of the experiment `{name}` charts the accuracy of all versions."
    )
