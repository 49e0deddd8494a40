"""`loupe completion`: a script for a shell, made from the parser, so that it knows every flag."""

import argparse
import typing
from collections.abc import Iterator
from typing import Literal, cast

import shtab

from service.command_parser import Parsers
from service.options import options

_PATH_METAVARS = ("PATH", "FOLDER", "FILE|URL|ID|TEXT")
_PATH_SETTINGS = ("api_keys", "files_folder", "model")


def completion_script(parsers: Parsers, shell: str) -> str:
    """Write the script for `bash`, `zsh`, `fish` or `tcsh`."""
    for parser in parsers.commands.values():
        for action in _actions(parser):
            choices = _choices(action)
            if choices:
                action.choices = choices
            elif action.metavar in _PATH_METAVARS or action.dest in _PATH_SETTINGS:
                vars(action)["complete"] = shtab.FILE  # where shtab looks for it
    return shtab.complete(parsers.main, shell=shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """List what a parser takes, through the levels below it."""
    # argparse has no public way to ask; shtab itself reads the same.
    for action in cast("list[argparse.Action]", vars(parser)["_actions"]):
        yield action
        below = cast("object", action.choices)
        if isinstance(below, dict):
            for parser_below in cast("dict[str, argparse.ArgumentParser]", below).values():
                yield from _actions(parser_below)


def _choices(action: argparse.Action) -> tuple[str, ...]:
    """Give the words that a setting is one of."""
    option = options().get(action.dest)
    if option is None or action.metavar not in ("VALUE", "true|false"):
        return ()
    if option.type is bool:
        return ("true", "false")
    if typing.get_origin(option.type) is Literal:
        return tuple(map(str, typing.get_args(option.type)))
    return ()
