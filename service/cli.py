"""`loupe serve | check | keys | settings | version`: reads the settings, then hands over.

It imports neither the web stack nor the model, so that help comes at once.
"""

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from service.access.key_file import KeyFileError, add_key, read_keys
from service.options import (
    Option,
    Resolved,
    SettingsError,
    nearest,
    options,
    render_env_example,
    render_markdown,
    resolve,
)

_USAGE_ERROR = 2

_SUMMARY = "Serve a Qwen3-VL vision-language model over HTTP."
_SOURCES_NOTE = """\
Every setting is a flag (--max-model-len 4096), an environment variable (LOUPE_MAX_MODEL_LEN=4096)
and a line of the settings file (max_model_len = 4096); the first of these that is there counts.
"""
_GROUP_TITLES = {
    "access": "who may ask",
    "connections": "connections",
    "engine": "model and engine",
    "media": "pictures",
    "service": "HTTP, processes and log",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for a mistake in the command line or the settings."""
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if unknown:
        flags = [option.flag for option in options().values()]
        word = unknown[0].partition("=")[0]
        parser.error(f"{word}: unknown argument{nearest(word, flags)}")
    values: dict[str, str] = vars(parsed)
    command = values.pop("command")
    try:
        return _run(command, values)
    except (SettingsError, KeyFileError) as error:
        print(f"loupe: {error}", file=sys.stderr)
        return _USAGE_ERROR


def _run(command: str, values: dict[str, str]) -> int:
    if command == "version":
        print(f"loupe {_version()}")
        return 0
    if command == "settings":
        print({"env": render_env_example, "markdown": render_markdown}[values["as"]](), end="")
        return 0
    if command == "keys":
        return _add_key(values)
    resolved = resolve(values, os.environ)
    if resolved.settings.access.api_keys:
        read_keys(Path(resolved.settings.access.api_keys))  # a mistake in it is told at once
    return _serve(resolved) if command == "serve" else _check(resolved)


def _version() -> str:
    try:
        return importlib.metadata.version("loupe")
    except importlib.metadata.PackageNotFoundError:
        return "(run from its sources, not installed)"


def _add_key(values: dict[str, str]) -> int:
    named = values.get("api_keys") or resolve({}, os.environ).settings.access.api_keys
    if not named:
        raise SettingsError("say which file: --api-keys PATH, or LOUPE_API_KEYS")
    path = Path(named)
    key = add_key(path, values["name"], tenant=values.get("tenant"), is_admin="admin" in values)
    print(key)
    print(f"This key is shown once; {path} has its hash.", file=sys.stderr)
    return 0


def _serve(resolved: Resolved) -> int:
    from service.supervisor import ENTRIES, serve

    return serve(resolved.settings, ENTRIES)


def _check(resolved: Resolved) -> int:
    from service.check import check

    findings = check(resolved)
    print(findings.report, end="")
    return 1 if findings.problems else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loupe", description=_SUMMARY, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, help_text in (
        ("serve", "run the service until it is stopped"),
        ("check", "say what would be served, with which memory, and whether anything is missing"),
    ):
        command = commands.add_parser(
            name,
            help=help_text,
            usage=f"loupe {name} [--config PATH] [--SETTING VALUE ...]",
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=_SOURCES_NOTE,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
        command.add_argument("--config", metavar="PATH", help="settings file in TOML")
        _add_settings(command)
    _add_key_actions(commands.add_parser("keys", help="make an API key"))
    settings = commands.add_parser("settings", help="list every setting with its default")
    settings.add_argument(
        "--as", choices=("env", "markdown"), default="env", help="the list's form"
    )
    commands.add_parser("version", help="print the version")
    return parser


def _add_key_actions(keys: argparse.ArgumentParser) -> None:
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser(
        "add",
        help="print a new key once, and add its hash to the key file",
        description="Print a new key once, and add its hash to the key file. A running service "
        "takes it within seconds. To replace a key, add another of the same name, then delete the "
        "old one's table from the file.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add.add_argument("name", metavar="NAME", help="who gets it, for logs and quotas")
    add.add_argument("--api-keys", metavar="PATH", help="the key file (default: LOUPE_API_KEYS)")
    add.add_argument("--tenant", help="share files and caches with its other keys (default: NAME)")
    add.add_argument("--admin", action="store_true", help="open the admin routes")


def _add_settings(command: argparse.ArgumentParser) -> None:
    names = dict.fromkeys(option.group for option in options().values())
    groups = {name: command.add_argument_group(_GROUP_TITLES.get(name, name)) for name in names}
    for option in options().values():
        if option.type is bool:
            groups[option.group].add_argument(
                option.flag,
                nargs="?",
                const="true",
                metavar="true|false",
                dest=option.name,
                help=_help(option),
            )
        else:
            groups[option.group].add_argument(
                option.flag, metavar="VALUE", dest=option.name, help=_help(option)
            )


def _help(option: Option) -> str:
    default = "" if option.default_text == "" else f" (default: {option.default_text})"
    return (option.help + default).replace("%", "%%")
