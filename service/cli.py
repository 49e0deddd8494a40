"""`loupe COMMAND`: reads the command line, then hands over.

It imports neither the web stack nor the model, so that help comes at once.
"""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from service.access.key_file import KeyFileError, add_key, read_keys
from service.client.address import KEY_VARIABLE
from service.command_parser import COMMANDS, Parsers, make_parsers, unknown_command
from service.options import (
    Resolved,
    SettingsError,
    nearest,
    render_env_example,
    render_markdown,
    resolve,
)
from service.version import version

_USAGE_ERROR = 2
_FLAG = re.compile(r"--[a-z][a-z-]*")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 2 for a mistake in the command line or the settings."""
    typed = list(sys.argv[1:] if arguments is None else arguments)
    if typed == ["--version"]:
        typed = ["version"]
    parsers = make_parsers()
    if typed and not typed[0].startswith("-") and typed[0] not in COMMANDS:
        parsers.main.error(unknown_command(typed[0]))
    parsed, unknown = parsers.main.parse_known_args(typed)
    values: dict[str, Any] = vars(parsed)
    command = values.pop("command")
    if command == "ask" and not any(word.startswith("--") for word in unknown):
        # argparse takes words up to the first flag; those behind it are left to us.
        values["words"] = [*values.get("words", []), *unknown]
    elif unknown:
        _refuse(parsers, command, unknown[0])
    try:
        return _run(command, values, parsers, typed)
    except (SettingsError, KeyFileError) as error:
        print(f"loupe: {error}", file=sys.stderr)
        return _USAGE_ERROR


def _refuse(parsers: Parsers, command: str, argument: str) -> None:
    parser = parsers.commands[command]
    word = argument.partition("=")[0]
    parser.error(f"{word}: unknown argument{nearest(word, _FLAG.findall(parser.format_help()))}")


def _run(command: str, values: dict[str, Any], parsers: Parsers, typed: Sequence[str]) -> int:
    match command:
        case "version":
            print(f"loupe {version()}")
        case "settings":
            text = {"env": render_env_example, "markdown": render_markdown}[values["as"]]()
            print(text, end="")
        case "completion":
            from service.completion import completion_script

            print(completion_script(parsers, values["shell"]))
        case "keys":
            return _add_key(values)
        case "ask":
            return _ask(values, parsers)
        case "bench":
            from service.load.bench import BenchOptions, bench

            return bench(msgspec.convert(values, BenchOptions))
        case _:
            return _serve_or_check(command, values, typed)
    return 0


def _ask(values: dict[str, Any], parsers: Parsers) -> int:
    from service.client.ask import AskOptions, ask

    if not values.get("words"):
        parsers.commands["ask"].error("name a picture, a question, or both")
    return ask(msgspec.convert(values, AskOptions))


def _serve_or_check(command: str, values: dict[str, Any], typed: Sequence[str]) -> int:
    resolved = resolve(values, os.environ)
    if resolved.settings.access.api_keys:
        read_keys(Path(resolved.settings.access.api_keys))  # a mistake in it is told at once
    elif KEY_VARIABLE in os.environ:
        # One letter less than the setting: a service that was meant to ask for keys would not.
        raise SettingsError(
            f"{KEY_VARIABLE} is the key that clients present; which keys are taken here is a file, "
            f"named by LOUPE_API_KEYS. Unset {KEY_VARIABLE} to serve without keys"
        )
    return _serve(resolved) if command == "serve" else _check(resolved, typed[1:])


def _add_key(values: dict[str, Any]) -> int:
    named = values.get("api_keys") or resolve({}, os.environ).settings.access.api_keys
    if not named:
        raise SettingsError("say which file: --api-keys PATH, or LOUPE_API_KEYS")
    path = Path(named)
    key = add_key(path, values["name"], tenant=values.get("tenant"), is_admin="admin" in values)
    print(key)
    print(f"This key is shown once; {path} has its hash.", file=sys.stderr)
    return 0


def _serve(resolved: Resolved) -> int:
    from service.processes.launcher import ENTRIES
    from service.processes.supervisor import serve

    return serve(resolved.settings, ENTRIES)


def _check(resolved: Resolved, flags: Sequence[str]) -> int:
    from service.check import check

    findings = check(resolved)
    print(findings.report, end="")
    print("\nnext:")
    if findings.problems:
        print(f"  mend the problems, then again: {shlex.join(['loupe', 'check', *flags])}")
        return 1
    print(f"  {shlex.join(['loupe', 'serve', *flags])}")
    return 0
