"""The decimal sign of the target."""

from collections.abc import Mapping, Sequence

from forecast.config import DataConfig
from forecast.data.discovery.numbers import NumberReading, Sign, agreed_sign
from forecast.data.discovery.profile import Column
from forecast.errors import DataError, listing


def find_sign(
    columns: Mapping[str, Column], targets: Sequence[str], separator: str | None, data: DataConfig
) -> tuple[Sign | None, str]:
    """Return the decimal sign of the targets, None if no number has a mark, and why.

    The values of the targets decide; if they do not, the other columns of the file, then the separator: fields
    between commas have no commas unless they are quoted. Raises DataError if two signs are possible.
    """
    readings = [column.numbers for column in columns.values() if column.numbers is not None]
    of_targets = [reading for reading in readings if reading.name in targets and reading.marked is not None]
    if not of_targets:
        return None, ""
    example = of_targets[0]
    if data.decimal is not None:
        _check(data.decimal, of_targets)
        return data.decimal, f"; decimals after {data.decimal!r} as set"
    sign, proof = agreed_sign(of_targets)
    plain = not any(reading.commas for reading in of_targets)
    if sign == "." and plain:
        return sign, ""
    if sign is not None and proof is not None:
        _check(sign, of_targets)
        return sign, f"; decimals after {sign!r}, as in {proof.evidence!r}"
    if any(len(reading.signs) == 1 for reading in of_targets):
        raise DataError(
            f"some targets have decimal points and others decimal commas ({_examples(of_targets)}); write all of them "
            "in one way"
        )
    sign, proof = agreed_sign(readings)
    if sign is not None and proof is not None:
        return sign, f"; decimals after {sign!r}, as in {proof.evidence!r} of {proof.name!r}"
    if separator == "," and plain:
        return ".", f"; decimals after '.' ({example.marked!r}), as commas separate the fields"
    text = str(example.marked)
    raise DataError(
        f"column {example.name!r}: {text!r} may be {_value(text, '.')} or {_value(text, ',')}, and no value of the "
        "file decides; set data.decimal=. or data.decimal=,"
    )


def _check(sign: Sign, readings: Sequence[NumberReading]) -> None:
    """Raise DataError if a column can't be read with a decimal sign."""
    wrong = [reading for reading in readings if sign not in reading.signs]
    if wrong:
        raise DataError(
            f"{len(wrong):,} of {len(readings):,} columns have numbers that can't have decimals after {sign!r} "
            f"({_examples(wrong)}); write all of them in one way, or set data.decimal to the other sign"
        )


def _examples(readings: Sequence[NumberReading]) -> str:
    return listing(f"{reading.evidence!r} in {reading.name!r}" for reading in readings)


def _value(text: str, sign: Sign) -> str:
    """Return what a number means with a decimal sign.

    >>> _value("1.234", "."), _value("1.234", ",")
    ('1.234', '1,234 (more than a thousand)')
    """
    if sign in text:
        return text.replace(",", ".")
    number = int(text.replace(",", "").replace(".", "").lstrip("+-\u2212"))
    return f"{number:,} (more than a thousand)"
