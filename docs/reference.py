"""Pages that are made from the code when the site is built: every setting, and every function.

MkDocs calls `on_config` and `on_files` (`hooks` in mkdocs.yml). Nothing here imports torch.
"""

import ast
import inspect
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import SecretStr
from pydantic.fields import FieldInfo

import forecast
from forecast import config
from forecast.config import commands
from pipelines.jobs.command_line import compose

ROOT: Final = Path(forecast.__file__).parent
VERB: Final = "`forecast "
"""The docstring of a verb's config begins with it."""
# What the functions return or take, by the module where it is defined.
RESULTS: Final = {
    "FitResult": "training/result",
    "Artifact": "artifact",
    "FinetuneResult": "finetuning/result",
    "BacktestResult": "backtesting/result",
    "CalibrationResult": "calibration/calibrate",
    "TuneResult": "tuning/tune",
    "DistilResult": "compression/distil",
    "Explanation": "explanation/result",
    "Forecasts": "prediction/result",
    "MonitorResult": "monitoring/result",
    "Reconciled": "reconciliation/reconcile",
    "Loaded": "data/ingest/loaded",
}
# Sections of the navigation that pages without a place go to.
_GUIDES: Final = "Guides"


def on_config(site: MkDocsConfig) -> None:
    """Put pages that the navigation does not name at the end of the guides."""
    assert site.nav is not None
    named = {page for section in site.nav for page in _pages(section)}
    (guides,) = (section[_GUIDES] for section in site.nav if isinstance(section, dict) and _GUIDES in section)
    guides += sorted(page.name for page in Path(site.docs_dir).glob("*.md") if page.name not in named)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages."""
    for name, content in {"settings.md": settings_page(), "python.md": python_page()}.items():
        files.append(File.generated(config, name, content=content))


def verbs() -> dict[str, type[config.Config]]:
    """Return the config model of each verb: those whose docstring begins with its name.

    One of several actions (`forecast models list` and `show`) stands for all that it names.
    """
    found = {}
    for model in vars(commands).values():
        about = inspect.getdoc(model) or "" if isinstance(model, type) and issubclass(model, config.Config) else ""
        if about.startswith(VERB):
            found[about.removeprefix(VERB).partition("`")[0]] = model
    return found


def settings_page() -> str:
    """Return a page with every key of every verb: its type, default and meaning."""
    groups: dict[tuple[str, type[config.Config]], list[str]] = {}
    parts = [
        "# Settings",
        "Every key of every verb, as `forecast VERB --help` lists them. On the command line a key is "
        "`group.name=value`; in Python, the groups are dictionaries and keyword arguments ([Python](python.md)).",
        "Settings that are text have the text as it is given: `explain.series=3.10` is the series 3.10, and `007`, "
        "`true` and `2024-01-31` are names. An element of a list that holds a comma is written in quotes: "
        "`finetune.series=[3.10,'a, b']`. `${oc.env:NAME}` is taken from the environment, `${data.path}` is another "
        "setting, and any other `${` is text. In YAML, a number or a truth value is not text: write `series: ['3.10']` "
        "there, and `\\${` for `${`.",
        "## Verbs",
    ]
    for verb, model in verbs().items():
        own = {name: field for name, field in model.model_fields.items() if config.group_of(field)}
        for name, field in own.items():
            group = config.group_of(field)
            assert group is not None
            groups.setdefault((name, group), []).append(verb)
        about = _text(inspect.getdoc(model) or "").partition(": ")[2]
        links = ", ".join(f"[{name}](#{_anchor(name, config.group_of(field))})" for name, field in own.items())
        keys = set(config.paths(model))
        presets = [f"`{path}={_value(value)}`" for path, value in _leaves(compose(verb, [])) if path in keys]
        parts += [f"### forecast {verb}", about, f"Groups: {links}."]
        parts += [f"Defaults of its own: {', '.join(presets)}."] if presets else []
        parts += [_table(rows)] if (rows := [*_rows(model, "", own)]) else []
    parts.append("## Groups")
    for (name, group), users in sorted(groups.items(), key=lambda item: (item[0][0], item[0][1].__name__)):
        parts += [
            f"### {name} ({', '.join(users)}) {{ #{_anchor(name, group)} }}",
            _about(group),
            _table(_rows(group, f"{name}.")),
        ]
    return "\n\n".join(parts) + "\n"


def python_page() -> str:
    """Return a page with the functions of `forecast` and what they return."""
    tree = _parsed("api")
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    parts = [
        "# Python",
        "`import forecast as fc`. Settings that are passed on have the keys of [the config](settings.md).",
        "## Functions",
    ]
    for name in forecast.__all__:
        node = functions[name]
        signature = f"fc.{name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns or ast.Constant(None))}"
        signature = re.sub(r"(: [^=,]+)=", r"\1 = ", signature)
        parts += [f"### {name}", f"```python\n{_folded(signature)}\n```", ast.get_docstring(node) or ""]
    parts.append("## What they return")
    for name, module in RESULTS.items():
        (found,) = (node for node in _parsed(module).body if isinstance(node, ast.ClassDef) and node.name == name)
        rows = [f"| `{member}` | {_cell(about)} |" for member, about in _members(found)]
        parts += [f"### {name}", ast.get_docstring(found) or "", "\n".join(["| | |", "| --- | --- |", *rows])]
    return "\n\n".join(parts) + "\n"


def _pages(section: Any) -> Iterator[str]:
    if isinstance(section, str):
        yield section
        return
    for inner in section.values() if isinstance(section, dict) else section:
        yield from _pages(inner)


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _anchor(name: str, group: type[config.Config] | None) -> str:
    return f"{name}-{group.__name__.lower() if group else ''}"


def _about(group: type[config.Config]) -> str:
    """Return the docstring of a group, or of what it is a variant of."""
    about = _text(inspect.getdoc(group) or "")
    return _about(group.__base__) if about.startswith("`") and group.__base__ else about  # type: ignore[arg-type]


def _table(rows: Iterable[str]) -> str:
    return "\n".join(["| key | type | default | |", "| --- | --- | --- | --- |", *rows])


def _rows(group: type[config.Config], prefix: str, without: Iterable[str] = ()) -> Iterator[str]:
    """Yield the rows of the keys of a group, except those of the groups `without`."""
    texts = config.descriptions(group, prefix)
    for path, field in config.fields(group, prefix):
        if not config.group_of(field) and path.partition(".")[0] not in without:
            default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
            yield f"| `{path}` | {_cell(_type(field))} | {default} | {_cell(texts[path])} |"


def _value(value: Any) -> str:
    """Return a default as it is written on the command line."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_value, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, dict) else "{}"


def _type(field: FieldInfo) -> str:
    """Return the type of a field in words, with its bounds."""
    annotation = field.annotation
    inner = [part for part in get_args(annotation) if part is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType) and len(inner) == 1:
        (annotation,) = inner
    bounds = [*field.metadata]
    if get_origin(annotation) is Annotated:
        annotation, *given = get_args(annotation)
        bounds += [bound for one in given for bound in (one.metadata if isinstance(one, FieldInfo) else [one])]
    return " ".join([_kind(annotation), *_bounds(bounds)])


def _kind(annotation: Any) -> str:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        words = {str: "text", int: "whole number", float: "number", bool: "true or false", SecretStr: "text"}
        return words.get(annotation, annotation.__name__)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(map(_kind, get_args(annotation)))
    return {tuple: "list", dict: "mapping"}[get_origin(annotation)]  # type: ignore[index]


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for bound in metadata:
        match bound:
            case Ge(ge):
                yield f"≥ {ge}"
            case Gt(gt):
                yield f"&gt; {gt}"
            case Le(le):
                yield f"≤ {le}"
            case Lt(lt):
                yield f"&lt; {lt}"
            case MinLen(n):
                yield f"of {n} and more"


def _parsed(module: str) -> ast.Module:
    return ast.parse((ROOT / f"{module}.py").read_text(encoding="utf-8"))


def _folded(signature: str, width: int = 100) -> str:
    if len(signature) <= width:
        return signature
    head, _, rest = signature.partition("(")
    inner, _, after = rest.rpartition(") -> ")
    return f"{head}(\n    " + ",\n    ".join(inner.split(", ")) + f",\n) -> {after}"


def _members(found: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Yield the public fields of a class with the docstrings under them, then its methods with theirs."""
    for node, after in zip(found.body, [*found.body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            about = after.value if isinstance(after, ast.Expr) else None
            text = about.value if isinstance(about, ast.Constant) and isinstance(about.value, str) else ""
            yield f"{node.target.id}: {ast.unparse(node.annotation)}", inspect.cleandoc(text)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            is_property = any(ast.unparse(one) in ("property", "cached_property") for one in node.decorator_list)
            yield node.name + ("" if is_property else "()"), ast.get_docstring(node) or ""


def _text(docstring: str) -> str:
    return " ".join(docstring.split())


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")
