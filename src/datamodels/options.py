"""Command-line options of the classic commands: ``--section.name=value``.

Each section is a pydantic model. Values come from YAML or JSON files (``-C FILE``, repeated files
merge) and from the command line, which wins. What belongs to no section of ours is handed back
untouched, since a user's program may own it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError

from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.files import bounded

_CONFIG_FLAGS = ("-C", "--config-file")


@dataclass
class Options:
    """What a command line says: our sections, and everything else in its order."""

    values: dict[str, dict[str, Any]]
    foreign: list[str] = field(default_factory=list)
    config_files: list[str] = field(default_factory=list)
    foreign_sections: list[str] = field(default_factory=list)


def read_config_file(path: str) -> dict[str, Any]:
    """The sections of a YAML or JSON file; ``a.b: 1`` is the same as ``a: {b: 1}``."""
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text())
        bounded(data)
    except OSError as error:
        raise RequestError(f"cannot read the config file {path!r}: {error.strerror}") from None
    except Exception as error:  # yaml's own errors, and whatever a bad value of a tag raises
        raise RequestError(f"the config file {path!r} is not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise RequestError(f"the config file {path!r} must have sections as top-level keys")
    out: dict[str, Any] = {}
    for key, value in data.items():
        section, dot, name = str(key).partition(".")
        if dot:
            out.setdefault(section, {})[name] = value
        elif isinstance(value, dict) and isinstance(out.get(section), dict):
            out[section].update(value)
        else:
            out[section] = value
    return out


def parse(argv: Sequence[str], sections: Mapping[str, type[BaseModel]], *, foreign: bool = False) -> Options:
    """Split a command line into our sections and the rest.

    Parameters
    ----------
    foreign
        Whether options of other sections may stand there (they belong to the user's program).

    Raises
    ------
    RequestError
        for an unknown option, a missing value, or a config file that cannot be read.
    """
    options = Options(values={name: {} for name in sections})
    from_line: list[tuple[str, str, Any]] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        name, equals, value = token.partition("=")
        if name in _CONFIG_FLAGS:
            if not equals:
                if not tokens:
                    raise RequestError(f"{name} needs a file")
                value = tokens.pop(0)
            _merge_file(options, value, sections, foreign)
            continue
        section, dot, key = name.removeprefix("--").partition(".")
        if name.startswith("--") and dot and section in sections:
            from_line.append((section, key, _value(name, key, equals, value, tokens, sections[section])))
        elif foreign:
            options.foreign.append(token)
        else:
            raise RequestError(f"unknown option {token!r}; legal: {legal(sections)}")
    for section, key, value in from_line:
        options.values[section][key] = value
    return options


def _value(name: str, key: str, equals: str, value: str, tokens: list[str], model: type[BaseModel]) -> Any:
    info = model.model_fields.get(key)
    if info is None:
        raise RequestError(f"unknown option {name!r}; legal: {legal({name[2:].partition('.')[0]: model})}")
    if equals:
        return value
    if info.annotation is bool:
        return True
    if not tokens or tokens[0].startswith("--"):
        raise RequestError(f"option {name!r} needs a value: {name}=VALUE")
    return tokens.pop(0)


def _merge_file(options: Options, path: str, sections: Mapping[str, type[BaseModel]], foreign: bool) -> None:
    content = read_config_file(path)
    others = [name for name in content if name not in sections]
    options.config_files.append(path)
    options.foreign_sections += others
    if foreign and others:
        options.foreign += ["-C", path]
    for name in sections:
        values = content.get(name)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise RequestError(f"section {name!r} of {path!r} must hold options, not {values!r}")
        options.values[name].update(values)


def legal(sections: Mapping[str, type[BaseModel]]) -> str:
    """The options of all sections, in one line."""
    names = [f"--{section}.{key}" for section, model in sections.items() for key in model.model_fields]
    return ", ".join([*names, "-C FILE"])


def build(options: Options, sections: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """Validated models of all sections.

    Raises
    ------
    RequestError
        naming every option that is missing or has a bad value.
    """
    out = {}
    for name, model in sections.items():
        try:
            out[name] = model.model_validate(options.values[name])
        except ValidationError as error:
            parts = []
            for item in error.errors():
                option = f"--{name}.{'.'.join(str(part) for part in item['loc'])}"
                if item["type"] == "missing":
                    parts.append(f"{option} is required")
                elif item["type"] == "extra_forbidden":
                    parts.append(f"unknown option {option}; legal: {legal({name: model})}")
                else:
                    parts.append(f"{option} is {item['input']!r}: {item['msg'].removeprefix('Value error, ')}")
            raise RequestError("; ".join(parts)) from None
    return out


def help_text(command: str, summary: str, sections: Mapping[str, type[BaseModel]]) -> str:
    """The text of ``--help``."""
    lines = [f"usage: python -m {command} [-C FILE ...] [--section.name=value ...]", "", summary, ""]
    for section, model in sections.items():
        for key, info in model.model_fields.items():
            default = "required" if info.is_required() else f"default {info.default}"
            lines.append(f"  --{section}.{key:<20} {info.description or ''} ({default})")
    lines.append(f"  {'-C, --config-file FILE':<26} YAML or JSON with the sections as top-level keys; may repeat")
    return "\n".join(lines)


def command(
    module: str,
    summary: str,
    sections: Mapping[str, type[BaseModel]],
    argv: Sequence[str] | None,
    work: Callable[[Options, dict[str, Any]], str],
) -> None:
    """Run a classic command: ``--help``, or validated sections to `work`, which returns what to print."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if {"-h", "--help"} & set(arguments):
        print(help_text(module, summary, sections))
        return
    try:
        given = parse(arguments, sections)
        said = work(given, build(given, sections))
    except Exception as error:
        fail(error)
    print(said)


def fail(error: BaseException) -> NoReturn:
    """End a command with one line on standard error and the error's exit status."""
    print(f"error: {first_line(error)}", file=sys.stderr)
    raise SystemExit(
        error.exit_status if isinstance(error, DatamodelsError) else 2 if isinstance(error, ValueError) else 1
    )
