"""Texts within the limits of MLflow, which cuts longer ones without a word."""

import hashlib
from typing import Final

PARAM_LENGTH: Final = 6000
"""Most characters of a param of a run."""
TAG_LENGTH: Final = 8000
"""Most characters of a tag of a run."""


def shortened(text: str, limit: int, file: str) -> str:
    """Return a text of at most `limit` characters: the whole one, or its beginning, length, digest and file.

    >>> shortened("a" * 200, 100, "config.json")[-78:]
    'aa... (200 characters, SHA-256 c2a908d98f5df987, complete in config.json)'
    """
    if len(text) <= limit:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    rest = f"... ({len(text):,} characters, SHA-256 {digest}, complete in {file})"
    return text[: limit - len(rest)] + rest
