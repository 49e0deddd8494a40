"""The one table of settings: each field of the Structs as a flag, a variable and a file key.

Everything that lists settings is made from it: the command line, `deploy/env.example`, the README's
table. It knows names, types and help, and resolves the sources: flag > variable > file > default.
"""

import difflib
import functools
import inspect
import re
import textwrap
import tomllib
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

import msgspec

from service.client.address import KEY_VARIABLE, URL_VARIABLE
from service.config import Settings

VARIABLE_PREFIX = "LOUPE_"
CONFIG_VARIABLE = "LOUPE_CONFIG"
# The last two are those of the commands that ask a server.
_NO_SETTINGS = (CONFIG_VARIABLE, URL_VARIABLE, KEY_VARIABLE)

Source: TypeAlias = Literal["flag", "environment", "file", "default"]

# Kubernetes gives every pod such variables for a Service that is named `loupe`.
_SERVICE_LINK = re.compile(r"LOUPE_(SERVICE_(HOST|PORT.*)|PORT(_\d+_(TCP|UDP).*)?)")


class SettingsError(Exception):
    """A setting that is unknown or has a bad value; the message is for the operator."""


class Option(NamedTuple):
    """One setting.

    group: `service`, `engine` or `media`: the Struct the field is in.
    type: the field's annotation, with its bounds. help: its line of the Struct's docstring.
    """

    name: str
    group: str
    type: object
    default: object
    help: str

    @property
    def flag(self) -> str:
        """The command-line flag, such as `--max-model-len`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, such as `LOUPE_MAX_MODEL_LEN`."""
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def default_text(self) -> str:
        """The default as one would type it; empty when unset."""
        return shown(self.default)


class Resolved(NamedTuple):
    """The settings, and for each name where its value came from."""

    settings: Settings
    sources: dict[str, Source]


@functools.cache
def options() -> dict[str, Option]:
    """Make the table, by name, in the order of the documents."""
    table: dict[str, Option] = {}
    for group, struct in _groups():
        # What code calls None, an operator sees as a setting that is not set.
        texts = {name: text.replace("None", "unset") for name, text in _field_texts(struct).items()}
        for field in msgspec.structs.fields(struct):
            if _is_struct(field.type):
                continue
            if field.name in table:
                raise AssertionError(f"two settings are named {field.name}")
            default: object = {} if _is_table(field.type) else field.default
            table[field.name] = Option(
                field.name, group, field.type, default, texts.get(field.name, "")
            )
    return table


def resolve(flags: Mapping[str, str], environ: Mapping[str, str]) -> Resolved:
    """Read every source and build the settings.

    flags: values as typed, by setting name; `config` is the settings file.

    Raises:
        SettingsError: an unknown name or a bad value in any source, or an unreadable file.
    """
    file = flags.get("config") or environ.get(CONFIG_VARIABLE)
    layers: list[tuple[Source, dict[str, object]]] = [
        ("file", _read_file(Path(file)) if file else {}),
        ("environment", _read_environment(environ)),
        ("flag", _read_flags(flags)),
    ]
    values: dict[str, object] = {}
    sources: dict[str, Source] = dict.fromkeys(options(), "default")
    for source, layer in layers:
        values.update(layer)
        sources.update(dict.fromkeys(layer, source))
    return Resolved(_build(values), sources)


def value_of(settings: Settings, option: Option) -> object:
    """Read one setting out of the nested Structs."""
    owner = settings if option.group == "service" else getattr(settings, option.group)
    return getattr(owner, option.name)


def shown(value: object) -> str:
    """Write a value as one would type it; of a table, which may hold secrets, the keys alone."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ",".join(cast("dict[str, object]", value))
    if isinstance(value, tuple):
        return ",".join(map(str, cast("tuple[object, ...]", value)))
    return str(value).lower() if isinstance(value, bool) else str(value)


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant; empty when none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.7)
    return f"; did you mean {matches[0]}?" if matches else ""


def render_env_example() -> str:
    """Write every setting as a commented-out line of an environment file."""
    lines = [
        "# Every setting of Loupe with its default. An empty value leaves the default.",
        "# This file is written by `loupe settings`; change the Structs, not the file.",
    ]
    for option in options().values():
        lines += ["", *_wrapped_comment(option.help)]
        lines.append(f"#{option.variable}={option.default_text}")
    return "\n".join(lines) + "\n"


def render_markdown() -> str:
    """Write every setting as a row of the README's table."""
    lines = ["| setting | default | what it does |", "| --- | --- | --- |"]
    for option in options().values():
        default = option.default_text
        shown = f"`{default}`" if default else ""
        lines.append(f"| `{option.flag}` | {shown} | {option.help.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _groups() -> list[tuple[str, type[msgspec.Struct]]]:
    nested = [
        (field.name, field.type)
        for field in msgspec.structs.fields(Settings)
        if _is_struct(field.type)
    ]
    return [*sorted(nested), ("service", Settings)]


def _is_struct(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _field_texts(struct: type[msgspec.Struct]) -> dict[str, str]:
    """Find each field's sentence in the docstring: `name: text` or `name, other: text`."""
    names = "|".join(struct.__struct_fields__)
    heading = re.compile(rf"(?:^|\s)((?:{names})(?:, (?:{names}))*): ")
    text = " ".join((inspect.getdoc(struct) or "").split())
    found = list(heading.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {
        name: text[match.end() : end].strip()
        for match, end in zip(found, ends, strict=True)
        for name in match[1].split(", ")
    }


def _read_flags(flags: Mapping[str, str]) -> dict[str, object]:
    table = options()
    return {
        name: _converted(table[name], text, table[name].flag, strict=False)
        for name, text in flags.items()
        if name != "config"
    }


def _read_environment(environ: Mapping[str, str]) -> dict[str, object]:
    by_variable = {option.variable: option for option in options().values()}
    values: dict[str, object] = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(VARIABLE_PREFIX) or variable in _NO_SETTINGS:
            continue
        if _SERVICE_LINK.fullmatch(variable) and (variable not in by_variable or "://" in text):
            raise SettingsError(
                f"{variable}: set by Kubernetes for a Service named loupe, not a setting of it; "
                "give the pod `enableServiceLinks: false`"
            )
        option = by_variable.get(variable)
        if option is None:
            hint = nearest(variable, [*by_variable, CONFIG_VARIABLE])
            raise SettingsError(f"{variable}: unknown setting{hint}")
        if text:  # compose files pass `LOUPE_X=${X:-}` as an empty string
            values[option.name] = _converted(option, text, variable, strict=False)
    return values


def _read_file(path: Path) -> dict[str, object]:
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path}: {error}") from error
    table = options()
    values: dict[str, object] = {}
    for name, value in entries.items():
        if name not in table:
            raise SettingsError(f"{path}: {name}: unknown setting{nearest(name, table)}")
        values[name] = _converted(table[name], value, f"{path}: {name}", strict=True)
    return values


def _converted(option: Option, value: object, key: str, *, strict: bool) -> object:
    if isinstance(value, str) and typing.get_origin(option.type) is tuple:
        value = [part.strip() for part in value.split(",")]
    try:
        if isinstance(value, str) and _is_table(option.type):
            return msgspec.json.decode(value, type=option.type)
        return msgspec.convert(value, option.type, strict=strict)
    except msgspec.DecodeError as error:
        raise SettingsError(f"{key}: {error}{_choices(option.type)}") from error


def _is_table(kind: object) -> bool:
    return typing.get_origin(kind) is dict


def _choices(kind: object) -> str:
    if typing.get_origin(kind) is tuple:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) is not Literal:
        return ""
    return f"; one of {', '.join(typing.get_args(kind))}"


def _build(values: Mapping[str, object]) -> Settings:
    nested: dict[str, dict[str, object]] = {group: {} for group, _ in _groups()}
    for name, value in values.items():
        nested[options()[name].group][name] = value
    return msgspec.convert(nested.pop("service") | nested, Settings)


def _wrapped_comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, 98)]
