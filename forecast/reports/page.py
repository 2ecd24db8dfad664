"""Building blocks of the HTML pages: one file each, which works offline with its data embedded.

Every text from data is escaped, and a page can load nothing but plotly.min.js beside it, if that is not embedded.
"""

import base64
import gzip
import html
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Final

import polars as pl

from forecast.reports.styles import wall_clock

ABSENT: Final = "\u2013"
_DIGITS: Final = 6


def page(
    template: str,
    *,
    title: str,
    subtitle: str,
    facts: Mapping[str, str],
    data: Iterable[tuple[str, object]],
    plotly: str | None = None,
    **parts: str,
) -> str:
    """Return the page with the body of templates/TEMPLATE.html and the script TEMPLATE.js.

    `data` are pairs of an id and a JSON value, which the script unpacks; `parts` is markup by its placeholder in the
    body. `plotly` is the path of plotly.min.js relative to the page; if None, the script is embedded.
    """
    blobs = (f'<script type="text/plain" id="{name}">{_packed(value)}</script>' for name, value in data)
    return _filled(
        "page.html",
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        facts=_facts(facts),
        body=_filled(f"{template}.html", **parts),
        origin="" if plotly is None else " 'self' file:",
        plotly=f"<script>{plotly_source()}</script>"
        if plotly is None
        else f'<script src="{html.escape(plotly)}"></script>',
        data="\n".join(blobs),
        css=_template("page.css"),
        js=_template("page.js") + _template(f"{template}.js"),
    )


def _filled(name: str, **parts: str) -> str:
    # A single pass leaves braces in the data unchanged.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _template(name))


def _template(name: str) -> str:
    return (files("forecast.reports") / "templates" / name).read_text(encoding="utf-8")


def plotly_source() -> str:
    """Return the text of plotly.min.js."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _packed(value: object) -> str:
    """Return a value as JSON in gzip + base64: compact, and without characters that are special in HTML."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=4, mtime=0)).decode()


# ---- Data ----


def rounded(column: str) -> pl.Expr:
    """Return a column as floats of six digits, null for values that JSON cannot hold."""
    number = pl.col(column).cast(pl.Float64)
    return pl.when(number.is_finite()).then(number).round_sig_figs(_DIGITS)


def milliseconds(column: str) -> pl.Expr:
    """Return naive local times in milliseconds since 1970."""
    return wall_clock(column).dt.epoch("ms").alias(column)


def runs(times: Sequence[int]) -> list[int]:
    """Return times in run-length encoding: the first one, then pairs of a gap and its number of repetitions.

    >>> runs([0, 10, 20, 50])
    [0, 10, 2, 30, 1]
    """
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    lengths = ((gap, len(list(group))) for gap, group in itertools.groupby(gaps))
    return [*times[:1], *itertools.chain.from_iterable(lengths)]


# ---- Markup ----


def _facts(facts: Mapping[str, str]) -> str:
    items = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(str(value))}</dd></div>" for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def card(name: str, heading: str, body: str, caption: str = "") -> str:
    """Return a section of markup with a heading and a caption."""
    note = f'<p class="caption">{caption}</p>' if caption else ""
    return f'<section id="{name}" class="card"><h2>{heading}</h2><div class="scroll">{body}</div>{note}</section>'


def table(heads: Mapping[str, str], rows: Iterable[Sequence[str]], *, total: bool = False) -> str:
    """Return a table of texts; `heads` are the headings and the class of their cells: number, wide or none.

    A cell of class bar holds a share, drawn as a bar. With `total`, the last row holds the totals.
    """

    def cell(text: str, kind: str) -> str:
        if kind == "bar":
            return f'<td class="bar"><i style="width:{text}"></i></td>' if text else "<td></td>"
        return f'<td class="{kind}">{html.escape(text)}</td>' if kind else f"<td>{html.escape(text)}</td>"

    lines = ["".join(map(cell, row, heads.values())) for row in rows]
    marks = [""] * (len(lines) - total) + [' class="total"'] * total
    body = "".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    head = "".join(
        f'<th scope="col" class="number">{html.escape(name)}</th>'
        if kind == "number"
        else f'<th scope="col">{html.escape(name)}</th>'
        for name, kind in heads.items()
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def percent(share: float) -> str:
    """Return a share with one decimal.

    >>> percent(0.1234)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def bar(share: float) -> str:
    """Return a share for a cell of class bar."""
    return f"{share:.1%}"
