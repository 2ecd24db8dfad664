"""The pretrained networks that come with the package: tensors, and a card that says what they are."""

from pathlib import Path

from forecast.errors import ConfigError, listing

NANO = "gatecast-nano"
"""The latest version of the one that is used unless another is asked for."""

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the names of all versions, and those without a version, of the latest."""
    versions = _versions()
    return sorted({*versions, *(name.rpartition("-")[0] for name in versions)})


def card_of(name: str) -> Path:
    """Return the path of the card of a network: of `gatecast-nano` the latest version, of `gatecast-nano-1` that.

    Raises ConfigError for a name that there is not.
    """
    versions = _versions()
    matches = [each for each in versions if name in (each, each.rpartition("-")[0])]
    if not matches:
        raise ConfigError(f"{name}: no such pretrained network; there are {listing(names())}")
    return versions[max(matches, key=lambda each: int(each.rpartition("-")[2]))]


def _versions() -> dict[str, Path]:
    return {path.stem: path for path in _FOLDER.glob("*-*.json")}
