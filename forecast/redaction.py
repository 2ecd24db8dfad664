"""Removal of secrets and control characters from all text that leaves the program.

A secret is identified by its setting (`add_secret`), by the environment variable that holds it, or by its position in a
text, such as `user:password@` in an address or `token=...`.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

HIDDEN: Final = "***"
"""Replacement of secrets."""

_KEYWORD: Final = (
    r"passw(?:or)?d|passwd|pwd|passphrase|token(?!iz)|secret|api[_-]?key|access[_-]?key|signature|credential"
)
_PASSWORD: Final = re.compile(r"(?<=://)([^/@:\s]*):(?!password@)\S*@")  # our messages say user:password@host
_USER_AS_TOKEN: Final = re.compile(r"\b(https?|wss?|ftps?|git|s3|databricks)://[^\s/@:]+@", re.IGNORECASE)
_PARAMETER: Final = re.compile(
    rf"((?:{_KEYWORD})(?![^=&;\s]*_env\b)[^=&;\s:'\"]*)=('[^']*'|\"[^\"]*\"|[^&;\s]+)", re.IGNORECASE
)
_QUERY: Final = re.compile(r"([?&](?:key|sig|code|auth|x-amz-[\w-]+))=[^&\s]+", re.IGNORECASE)
_ENTRY: Final = re.compile(rf"(['\"][\w.-]*(?:{_KEYWORD})[\w.-]*['\"]\s*:\s*)('[^']*'|\"[^\"]*\")", re.IGNORECASE)
_HEADER: Final = re.compile(r"\b(authorization['\"]?\s*[:=]\s*['\"]?(?:basic|bearer))\s+[^\s'\"]+", re.IGNORECASE)
_SECRET_NAME: Final = re.compile(_KEYWORD, re.IGNORECASE)
_OTHER_NAME: Final = re.compile(r"_(file|path|dir|env)$|^(old)?pwd$", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[A-Za-z_-]{0,16}|[\d.,:+TZ -]*")
"""Words, numbers and dates: not secret if they come from the environment into a setting that need not be secret."""
_COMMON: Final = re.compile(r"[A-Za-z]+|\w{1,5}")
"""Words that may be part of a longer word: replaced only as a whole."""
_SHORTEST: Final = {True: 3, False: 6}
"""Least number of characters of a secret: of a certain one (True), and of a possible one."""
_CONTROL: Final = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Characters that move the cursor, start a line, change the direction of text, or can't be encoded."""

_secrets: dict[str, str] = {}


def add_secret(value: str, shown: str = HIDDEN, *, certain: bool = True) -> None:
    """Replace `value` by `shown` in all texts from now on; of an address, only its password and tokens.

    `certain` is false for an environment value in a setting that need not be secret: common words are not replaced.
    """
    if not certain and _PLAIN.fullmatch(value):
        return
    if (certain and "://" not in value) or shown != HIDDEN:
        _add(value, shown, _SHORTEST[certain])
    for part in _secret_parts(value):
        _add(part, HIDDEN, _SHORTEST[True])


def _add(value: str, shown: str, shortest: int) -> None:
    for spelling in (value, unquote(value), repr(value)[1:-1]):
        if len(spelling.strip()) >= shortest:
            _secrets.setdefault(spelling, shown)


def _secret_parts(address: str) -> list[str]:
    """Return the secret parts of an address, unchanged: password, values of secret parameters, token."""
    parts = re.findall(r"://[^:@/]*:(.*)@", address, re.DOTALL)
    parts += [value.strip("'\"") for _, value in _PARAMETER.findall(address)]
    parts += re.findall(r"(?:https?|wss?|ftps?|git|s3|databricks)://([^/@:]+)@", address, re.IGNORECASE)
    return [part for part in parts if part and part != HIDDEN]


def is_secret_name(name: str) -> bool:
    """Return whether a variable or a setting of this name holds a secret.

    >>> [is_secret_name(name) for name in ("PGPASSWORD", "DB_TOKEN", "PWD", "TOKEN_FILE", "secret_env")]
    [True, True, False, False, False]
    """
    return _SECRET_NAME.search(name) is not None and not _OTHER_NAME.search(name)


def without_password(address: str) -> str:
    """Return an address, or a text with addresses, with secrets replaced.

    >>> without_password("postgresql://me:secret@host/db")
    'postgresql://me:***@host/db'
    >>> without_password("https://t0ken@host/?sig=abc&page=2")
    'https://***@host/?sig=***&page=2'
    """
    text = _PASSWORD.sub(rf"\1:{HIDDEN}@", address)
    text = _USER_AS_TOKEN.sub(rf"\1://{HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\1={HIDDEN}", text)
    text = _QUERY.sub(rf"\1={HIDDEN}", text)
    text = _ENTRY.sub(rf"\1'{HIDDEN}'", text)
    return _HEADER.sub(rf"\1 {HIDDEN}", text)


def redacted(text: str) -> str:
    """Return a text without secrets.

    Secrets from the environment are shown as written in the settings, ${oc.env:NAME}, all others as ***.
    """
    secrets = dict(_environment()) | _secrets
    if present := sorted((secret for secret in secrets if secret in text), key=len, reverse=True):
        pattern = "|".join(
            rf"(?<!\w){re.escape(secret)}(?!\w)" if _COMMON.fullmatch(secret) else re.escape(secret)
            for secret in present
        )
        text = re.sub(pattern, lambda match: secrets[match[0]], text)
    return without_password(text)


def _environment() -> Iterator[tuple[str, str]]:
    """Yield the secrets in the environment with their replacements."""
    for name, value in os.environ.items():
        if "://" in value:
            yield from ((part, HIDDEN) for part in _secret_parts(value) if len(part) >= _SHORTEST[True])
        elif len(value) >= _SHORTEST[False] and is_secret_name(name):
            yield value, HIDDEN


def redacted_values(values: Any) -> Any:
    """Return nested settings without secrets; values of settings with a secret name are replaced entirely."""
    if isinstance(values, str):
        return redacted(values)
    if isinstance(values, Mapping):
        return {
            name: HIDDEN if isinstance(value, str) and value and is_secret_name(str(name)) else redacted_values(value)
            for name, value in values.items()
        }
    if isinstance(values, list | tuple):
        return [redacted_values(value) for value in values]
    return values


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return a text in which characters that control a terminal or a log are escaped; `lines` keeps line ends.

    >>> print(printable("a\x1b[2J\nb"), printable("a\nb", lines=True))
    a\x1b[2J\nb a
    b
    """
    return _CONTROL.sub(lambda match: match[0] if lines and match[0] == "\n" else _escaped(match[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def shown(text: str) -> str:
    """Return a text for printing: without secrets and control characters, all lines but the first indented."""
    first, *lines = printable(redacted(text), lines=True).split("\n")
    return "\n".join([first, *(line if line[:1] in ("", " ") else f"  {line}" for line in lines)])
