"""The pages that are made from the code have all of it."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config.base import load_config
from mkdocs.config.defaults import MkDocsConfig

import forecast
from docs import reference
from forecast.config import descriptions, fields, group_of
from pipelines.verbs import VERBS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings() -> str:
    return reference.settings_page()


def test_every_verb_has_its_settings() -> None:
    documented = {verb.split()[0] for verb in reference.verbs()}
    assert documented == {*VERBS} - {"demo", "commit"}  # the settings of a commit are those of its job


def test_every_key_of_every_verb_is_on_the_page_with_its_docstring(settings: str) -> None:
    rows = settings.splitlines()
    for model in reference.verbs().values():
        texts = descriptions(model)
        for path, field in fields(model):
            if not group_of(field):
                about = " ".join(texts[path].split()).replace("|", "\\|")
                assert any(row.startswith(f"| `{path}` | ") and row.endswith(f"| {about} |") for row in rows), path


@pytest.mark.parametrize(
    "row",
    [
        "| `window.horizon` | whole number ≥ 1 | required | Steps it forecasts. |",
        "| `fit.batch_size` | whole number ≥ 1 | `16` |",
        "| `model.cell` | `lstm`, `gru`, `rnn` | `lstm` |",
        "| `model.dropout` | number ≥ 0.0 &lt; 1.0 | `0.1` |",
        "| `model.quantile_levels` | list | `[0.1, 0.2,",
        "| `data.columns.target` | text | `auto` |",
        "| `data.uri` | text | `null` |",
        "| `score.force` | true or false | `false` |",
    ],
)
def test_types_and_defaults_are_in_words(row: str, settings: str) -> None:
    assert f"\n{row}" in settings


def test_the_pages_do_not_depend_on_the_process(settings: str) -> None:
    code = "from docs import reference; print(reference.settings_page() + reference.python_page(), end='')"
    made = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout
    assert made == settings + reference.python_page()


def test_every_function_is_on_the_page_with_its_parameters() -> None:
    page = reference.python_page()
    for name in forecast.__all__:
        function = getattr(forecast, name)
        signature = page.partition(f"fc.{name}(")[2].partition("->")[0]
        assert all(f"{parameter}:" in signature for parameter in inspect.signature(function).parameters), name
        assert (inspect.getdoc(function) or "").splitlines()[0] in page
    assert "| `digest()` |" in page
    assert "| `frame: pl.DataFrame` | series_id, timestamp, cutoff" in page


def test_a_page_without_a_place_goes_to_the_end_of_the_guides(tmp_path: Path) -> None:
    for name in ("data.md", "new.md", "index.md"):
        (tmp_path / name).write_text("# Page\n")
    site = MkDocsConfig()
    site.docs_dir, site.nav = str(tmp_path), ["index.md", {"Guides": [{"Panels": "data.md"}]}]
    reference.on_config(site)
    assert site.nav == ["index.md", {"Guides": [{"Panels": "data.md"}, "new.md"]}]


def test_the_site_builds_without_a_warning_and_its_pages_load_nothing_from_other_hosts(tmp_path: Path) -> None:
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    pages = {page.name: page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")}
    assert {f"{page.stem}.html" for page in (ROOT / "docs").glob("*.md")} <= pages.keys()
    assert {"settings.html", "python.html"} <= pages.keys()
    for name, page in pages.items():
        assert not re.findall(r"<(?:script|link|img)[^>]*https?://[^>]*>", page), name


def test_settings_that_a_page_names_exist() -> None:
    keys = {path: str(field.annotation) for model in reference.verbs().values() for path, field in fields(model)}
    groups = {path for path in keys if "." not in path}
    mappings = tuple(f"{path}." for path, annotation in keys.items() if "dict[" in annotation)
    wrong = {
        f"{page.name}: {name}"
        for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md"]
        for name in re.findall(r"[a-z_]+(?:\.[a-z_]+)+(?==)", page.read_text(encoding="utf-8"))
        if name.partition(".")[0] in groups and name not in keys and not name.startswith(mappings)
    }
    assert not wrong


def test_the_readme_leads_to_pages_and_pictures_that_are_there() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", readme)
    assert "docs/how.md" in links
    assert not [link for link in links if not (ROOT / link).is_file()]
    pictures = [ROOT / link for link in links if link.endswith(".png")]
    assert pictures
    assert all(picture.stat().st_size < 150_000 for picture in pictures)
