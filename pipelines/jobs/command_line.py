"""The command line: presets in `conf/` and overrides, composed into one validated config.

Hydra composes, pydantic validates. Overrides with a dotted key are forced into the tree, so that `forecast.config.load`
reports a misspelt one with all other mistakes, before Hydra stops at it.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from forecast.config import Config, descriptions, fields, group_of, load
from forecast.environment import is_score_only
from forecast.errors import ConfigError
from forecast.redaction import shown
from pipelines.jobs.references import hide_environment, overrides_of, references_of, with_references, without_secrets
from pipelines.jobs.settings_text import check_whole_numbers, escaped, quoted, read_text, text_settings

T = TypeVar("T", bound=Config)

# Inside the installed package, beside it in a checkout.
CONF = next(path for path in (Path(__file__).parents[1] / "conf", Path(__file__).parents[2] / "conf") if path.is_dir())


def action_of(
    verb: str, argv: Sequence[str], actions: Mapping[str, str], needs: str = ""
) -> tuple[str, list[str]] | None:
    """Return the action of a verb and its arguments; None if help was printed. `actions` maps names to descriptions.

    Raises ConfigError for an unknown action.
    """
    action, *words = argv or ["--help"]
    if action in ("-h", "--help"):
        print(f"usage: forecast {verb} ACTION {needs}[KEY=VALUE ...]\n")
        print("\n".join(f"  {name:<10} {about}" for name, about in actions.items()))
        return None
    if action not in actions:
        raise ConfigError(f"unknown action {action!r}; there are: {', '.join(actions)}")
    return action, words


def verb_config(kind: type[T], verb: str, argv: Sequence[str]) -> T:
    """Return the config of a verb from its command line.

    `--help` and `--cfg job` print and exit.
    """
    return verb_settings(kind, verb, argv)[0]


def verb_settings(kind: type[T], verb: str, argv: Sequence[str]) -> tuple[T, dict[str, Any]]:
    """Return the config of a verb from its command line, and its settings given as references, by path.

    `--help` and `--cfg job` print and exit.
    """
    parser = argparse.ArgumentParser(f"forecast {verb}", add_help=False, allow_abbrev=False, usage=_usage(verb))
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--cfg", choices=["job"])
    parser.add_argument("--config-dir", type=Path)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--overrides-env")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.overrides_env:
        arguments.overrides = [*overrides_of(arguments.overrides_env), *arguments.overrides]
    if arguments.help:
        print(_help(kind, verb, arguments.config_dir))
        sys.exit()
    if arguments.config and arguments.overrides:
        raise ConfigError(
            f"--config {arguments.config}: has all settings; change them there: {' '.join(arguments.overrides)}"
        )
    if arguments.config:
        tree, files = _read(arguments.config, "--config"), [arguments.config]
        references = references_of(_container(tree))
        hide_environment(kind, references)
        values = _resolved(tree, f"--config {arguments.config}")
        check_whole_numbers(kind, values, files)
    else:
        values, references = _compose(verb, arguments.overrides, arguments.config_dir, kind)
    if arguments.cfg:
        _print_config(kind, values, references)
        sys.exit()
    return load(kind, values), references


def compose(
    verb: str, overrides: Sequence[str], config_dir: Path | None = None, *, kind: type[Config] | None = None
) -> dict[str, Any]:
    """Return the config tree of a verb, presets and overrides applied, not validated.

    `config_dir` is a folder of additional presets, `kind` the config of a verb that is no job. Text settings keep the
    exact text of their overrides.
    """
    return _compose(verb, overrides, config_dir, kind or _kind_of(verb))[0]


def _compose(
    verb: str, overrides: Sequence[str], config_dir: Path | None, kind: type[Config]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the config tree of a verb, and its settings given as references."""
    if config_dir is None and (plain := _plain(verb, overrides, kind)) is not None:
        return plain, {}
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if config_dir and not config_dir.is_dir():
        raise ConfigError(f"--config-dir {config_dir}: no such folder")
    presets = _presets(verb, config_dir)
    not_here = {folder.name for folder in CONF.iterdir() if folder.is_dir()} - presets.keys()
    translated, mistakes, foreign = [], [], {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in not_here:  # presets of other verbs, for which Hydra's error would be unclear
            foreign[key] = value
            continue
        try:
            translated.append(_translate(override, presets, kind))
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n  ".join(mistakes))
    if config_dir:
        translated.append(f"hydra.searchpath=[{json.dumps(config_dir.absolute().as_uri())}]")
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra.compose(_primary(verb).stem if _primary(verb).exists() else None, overrides=translated)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"can't compose the config: {' '.join(str(error).split())}") from None
    references = references_of(_container(composed))
    hide_environment(kind, references)
    settings = {**_resolved(composed, "can't compose the config"), **foreign}
    check_whole_numbers(
        kind, settings, (file for folder in filter(None, (CONF, config_dir)) for file in folder.rglob("*.yaml"))
    )
    return settings, references


def _plain(verb: str, overrides: Sequence[str], kind: type[Config]) -> dict[str, Any] | None:
    """Return the config tree of a verb without presets if all its overrides are simple; else None, for Hydra.

    It is the tree that Hydra would compose, which takes a third of a second to import. Where only bundles are scored,
    without Hydra, other values are a ConfigError.
    """
    if _primary(verb).exists():
        return None
    texts, paths = text_settings(kind), {path for path, field in fields(kind) if not group_of(field)}
    tree: dict[str, Any] = {}
    for override in overrides:
        path, equals, value = override.partition("=")
        is_setting = bool(equals) and path in paths
        simple = equals and not re.search(r"[\\$'\"{}]", value) and (path in texts or _SIMPLE.fullmatch(value))
        if not (is_setting and simple):
            if not is_score_only():
                return None
            if is_setting or not equals:
                raise ConfigError(
                    f"{override}: gatecast-score takes KEY=VALUE, with text, numbers, true, false and null; a range of "
                    "cutoffs is score.cutoffs=FIRST..LAST/STEP"
                )
        if path in texts:
            form, optional = texts[path]
            setting = read_text(path, value, form, optional=optional)
        else:
            setting = json.loads(value) if _NUMBER.fullmatch(value) else value
        *groups, name = path.split(".")
        group = tree
        for parent in groups:
            group = group.setdefault(parent, {})
        group[name] = setting
    return tree


_NUMBER = re.compile(r"true|false|null|-?(0|[1-9]\d{0,14})(\.\d{1,15})?")
_WORD = r"(?!(?i:inf|nan|true|false|null))[A-Za-z][\w-]*|\d+[A-Za-z]+|\d{4}-\d\d-\d\d[\w.:/-]*"
_SIMPLE = re.compile(f"{_NUMBER.pattern}|{_WORD}")
"""Values that mean the same in JSON and in Hydra, words, durations, and dates or ranges of them."""


def _kind_of(verb: str) -> type[Config]:
    """Return the config class of a verb; for a verb that is no job, one without settings."""
    from pipelines.verbs import JOBS, config_of

    return config_of(verb) if verb in JOBS else Config


def yaml_mapping(file: Path, key: str) -> dict[str, Any]:
    """Return the content of a YAML file, with ${oc.env:NAME} replaced by values of the environment.

    `key` is the setting that names the file. Raises ConfigError if it can't be read, or is no mapping.
    """
    return _resolved(_read(file, key), f"{key} {file}")


def unresolved_mapping(file: Path, key: str) -> dict[str, Any]:
    """Return the content of a YAML file as `yaml_mapping`, with references unresolved."""
    return _container(_read(file, key))


def _read(file: Path, key: str) -> Any:
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        tree = OmegaConf.load(file)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{key} {file}: {' '.join(str(error).split())}") from None
    if not isinstance(tree, DictConfig):
        raise ConfigError(f"{key} {file}: not a mapping of settings")
    return tree


def _resolved(tree: Any, where: str) -> dict[str, Any]:
    """Return the settings of an OmegaConf tree with all references resolved; `where` starts a ConfigError."""
    from omegaconf.errors import OmegaConfBaseException

    try:
        return _container(tree, resolve=True)
    except (ValueError, OmegaConfBaseException) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from None


def _container(tree: Any, *, resolve: bool = False) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values = OmegaConf.to_container(tree, resolve=resolve)
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def _primary(verb: str) -> Path:
    return CONF / f"{verb.replace(' ', '_')}.yaml"


def _presets(verb: str, config_dir: Path | None) -> dict[str, list[str]]:
    """Return the preset groups of a verb, with the names in each."""
    primary = _primary(verb)
    if not primary.exists():
        return {}
    from omegaconf import OmegaConf

    entries = OmegaConf.select(OmegaConf.load(primary), "defaults", default=[])
    groups = [str(group) for entry in entries if not isinstance(entry, str) for group in entry]
    folders = [CONF, *([config_dir] if config_dir else [])]
    return {
        group: sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")}) for group in groups
    }


def _translate(override: str, presets: Mapping[str, list[str]], kind: type[Config]) -> str:
    """Return an override in Hydra's grammar: presets selected, keys forced, text and special values quoted."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    key, equals, value = override.partition("=")
    path, texts = key.strip().lstrip("+"), text_settings(kind)
    if equals and path in texts:
        form, optional = texts[path]
        text = read_text(path, value, form, optional=optional)
        return f"++{path}={quoted(escaped(text, kind.model_fields))}"
    if key.startswith(("+", "~")):
        return override
    if not equals or not key:
        raise ConfigError(f"{override!r} is not KEY=VALUE")
    if key in presets:
        if value == "null" or value in presets[key]:
            return override
        close = difflib.get_close_matches(value, presets[key], n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(presets[key])}"
        raise ConfigError(f"{override}: no such preset; {hint}; a single setting is {key}.NAME=VALUE")
    forced = f"++{override}"
    try:
        parsed = OverridesParser.create().parse_override(forced)
    except HydraException:  # such as a path with brackets: taken as text
        return f"++{key}={quoted(value)}"
    if parsed.is_sweep_override():
        raise ConfigError(f"{override}: one value is wanted; a list is {key}=[{value}]")
    return forced


def _print_config(kind: type[Config], values: dict[str, Any], references: dict[str, Any]) -> None:
    """Print the whole config as YAML with defaults, and ??? for missing settings; mistakes go to stderr.

    References are printed unresolved, passwords as ***.
    """
    from omegaconf import OmegaConf

    try:
        full = escaped(load(kind, values).model_dump(mode="json"))
    except ConfigError as error:
        print(f"# {shown(str(error))}".replace("\n", "\n# "), file=sys.stderr)
        full = _container(OmegaConf.merge(_skeleton(kind), escaped(values)))
    print(OmegaConf.to_yaml(with_references(without_secrets(kind, full), references)), end="")


def _skeleton(kind: type[Config]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        group = group_of(field)
        missing = "???" if field.is_required() else field.default
        result[name] = _skeleton(group) if group else list(missing) if isinstance(missing, tuple) else missing
    return result


def _value_at(tree: Mapping[str, Any], path: str, default: Any) -> Any:
    """Return the value of a key by its dotted path, the default if the tree has none."""
    *groups, name = path.split(".")
    for group in groups:
        tree = tree.get(group) or {}
    return tree.get(name, default)


def _usage(verb: str) -> str:
    return f"forecast {verb} [KEY=VALUE ...] [--cfg job] [--config-dir DIR] [--config FILE] [--help]"


def _help(kind: type[Config], verb: str, config_dir: Path | None) -> str:
    lines = [
        f"usage: {_usage(verb)}",
        "",
        "--cfg job         print the resolved config as YAML and stop",
        "--config FILE     take all settings from a file that --cfg job printed, with ${oc.env:NAME} for secrets",
        "--config-dir DIR  a folder of more presets, e.g. DIR/experiment/mine.yaml for experiment=mine",
    ]
    presets = _presets(verb, config_dir)
    if presets:
        lines += ["", "Presets:"]
        lines += [f"  {group}={'|'.join(names)}" for group, names in presets.items()]
    lines += ["", "Settings and their defaults:"]
    composed = compose(verb, [], config_dir, kind=kind)
    texts = descriptions(kind)
    for path, field in fields(kind):
        if group_of(field):
            continue
        default = _value_at(composed, path, None if field.is_required() else field.default)
        default_text = "(required)" if default is None and field.is_required() else json.dumps(default)
        options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        about = [texts[path].replace("\n", " "), f"({'|'.join(options)})" if options else ""]
        lines.append(f"  {f'{path}={default_text}':<40} {' '.join(filter(None, about))}".rstrip())
    return "\n".join(lines)
