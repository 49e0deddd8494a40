"""What can be typed behind `loupe`, and the help of it. Knows flags, not what they bring about."""

import argparse
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from service.client.address import DEFAULT_URL
from service.options import Option, nearest, options

SHELLS = ("bash", "zsh", "fish", "tcsh")
_SOURCES_NOTE = """\
Every setting is a flag (--max-model-len 4096), an environment variable (LOUPE_MAX_MODEL_LEN=4096)
and a line of the settings file (max_model_len = 4096); the first of these that is there counts.
"""
_GROUP_TITLES = {
    "access": "who may ask",
    "connections": "connections",
    "engine": "model and engine",
    "fetch": "pictures by URL",
    "files": "uploaded files",
    "media": "pictures, documents and videos",
    "metrics": "metrics",
    "service": "HTTP, processes and log",
    "tracing": "traces",
}


class Command(NamedTuple):
    """A command. help: one line, without a full stop. examples: lines to type."""

    group: str
    help: str
    examples: tuple[str, ...]


COMMANDS = {
    "serve": Command(
        "run a server",
        "run the service until it is stopped",
        ("loupe serve", "loupe serve --model Qwen/Qwen3-VL-2B-Instruct --port 9000"),
    ),
    "check": Command(
        "run a server",
        "say what would be served, with which memory, and whether anything is missing",
        ("loupe check --model Qwen/Qwen3-VL-2B-Instruct",),
    ),
    "keys": Command(
        "run a server",
        "make API keys",
        ("loupe keys add alice --api-keys keys.toml",),
    ),
    "settings": Command(
        "run a server",
        "list every setting with its default",
        ("loupe settings > loupe.env", "loupe settings --as markdown"),
    ),
    "ask": Command(
        "use a running server",
        "ask about pictures, PDFs and videos; the answer is printed as it comes",
        (
            'loupe ask photo.jpg "What is this?"',
            'loupe ask --pages 1-3 contract.pdf "Who signed it?"',
            "loupe ask --schema receipt.json - < receipt.png",
        ),
    ),
    "bench": Command(
        "use a running server",
        "measure latency and throughput, with a table and plots",
        (
            "loupe bench",
            "loupe bench --url http://10.0.0.7:8000 --concurrency 1,8,32 --seconds 30",
        ),
    ),
    "completion": Command(
        "the command itself",
        "print a script that completes commands and flags in a shell",
        (
            "loupe completion bash > ~/.local/share/bash-completion/completions/loupe",
            "loupe completion fish > ~/.config/fish/completions/loupe.fish",
            "loupe completion zsh > ~/.zfunc/_loupe   # a folder of $fpath",
        ),
    ),
    "version": Command("the command itself", "print the version", ("loupe version",)),
}


class Parsers(NamedTuple):
    """The whole command line, and each command's part of it."""

    main: argparse.ArgumentParser
    commands: Mapping[str, argparse.ArgumentParser]


class _MainParser(argparse.ArgumentParser):
    """The first level: its help is the table of commands by group."""

    def format_help(self) -> str:
        return _overview()

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"loupe: {message}\nloupe --help lists the commands\n")


def make_parsers() -> Parsers:
    """Make the parser of the whole command line."""
    main = _MainParser(prog="loupe", allow_abbrev=False)
    subparsers = main.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    commands: dict[str, argparse.ArgumentParser] = {}
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {line}" for line in command.examples)
        commands[name] = subparsers.add_parser(
            name,
            help=command.help,
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"examples:\n{examples}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            argument_default=argparse.SUPPRESS,
        )
    for name in ("serve", "check"):
        commands[name].usage = f"loupe {name} [--config PATH] [--SETTING VALUE ...]"
        commands[name].epilog = f"{commands[name].epilog}\n{_SOURCES_NOTE}"
        commands[name].add_argument("--config", metavar="PATH", help="settings file in TOML")
        _add_settings(commands[name])
    _add_key_actions(commands["keys"])
    commands["settings"].add_argument(
        "--as", choices=("env", "markdown"), default="env", help="the list's form (default: env)"
    )
    _add_question(commands["ask"])
    _add_load(commands["bench"])
    commands["completion"].add_argument("shell", choices=SHELLS, help="the shell")
    return Parsers(main, commands)


def unknown_command(word: str) -> str:
    """Say that there is no such command, and which was probably meant."""
    return f"there is no command {word}{nearest(word, COMMANDS)}"


def _overview() -> str:
    lines = ["usage: loupe COMMAND ...", "", "Serve a Qwen3-VL vision-language model, and ask it."]
    for group in dict.fromkeys(command.group for command in COMMANDS.values()):
        lines += ["", f"{group}:"]
        lines += [
            f"  {name:12}{command.help}"
            for name, command in COMMANDS.items()
            if command.group == group
        ]
    return "\n".join([
        *lines,
        "",
        "examples:",
        "  loupe serve                             the demo model, on this machine",
        '  loupe ask photo.jpg "What is this?"     in another terminal',
        "",
        "loupe COMMAND --help tells more.",
        "",
    ])  # fmt: skip


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


def _add_key_actions(keys: argparse.ArgumentParser) -> None:
    actions = keys.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser(
        "add",
        help="print a new key once, and add its hash to the key file",
        description="Print a new key once, and add its hash to the key file. A running service "
        "takes it within seconds. To replace a key, add another of the same name, then delete the "
        "old one's table from the file.",
        epilog="example:\n  loupe keys add alice --api-keys keys.toml\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    add.add_argument("name", metavar="NAME", help="who gets it, for logs and quotas")
    add.add_argument("--api-keys", metavar="PATH", help="the key file (default: LOUPE_API_KEYS)")
    add.add_argument("--tenant", help="share files and caches with its other keys (default: NAME)")
    add.add_argument("--admin", action="store_true", help="open the admin routes")


def _add_server(command: argparse.ArgumentParser) -> None:
    """Add what every command needs that asks a server."""
    server = command.add_argument_group("server")
    server.add_argument("--url", help=f"the server (default: LOUPE_URL, or {DEFAULT_URL})")
    server.add_argument(
        "--api-key-file",
        metavar="PATH",
        help="a file that holds the API key (default: the key itself in LOUPE_API_KEY)",
    )
    server.add_argument("--model", metavar="NAME", help="the model (default: the first it serves)")


def _add_question(ask: argparse.ArgumentParser) -> None:
    ask.usage = "loupe ask [--FLAG VALUE ...] FILE|URL|ID|TEXT ..."
    ask.description = (
        f"{ask.description}\n"
        "Each word is a file, a URL, the id of an uploaded file, - for the standard input, or\n"
        'else text; they reach the model in this order. Without a text it is asked "Describe this."'
    )
    add = ask.add_argument
    add("words", nargs="*", metavar="FILE|URL|ID|TEXT", help="what to ask about, and the question")
    add("--system", metavar="TEXT", help="instructions before the question")
    add("--max-tokens", type=int, metavar="N", help="end the answer after so many tokens")
    add("--temperature", type=float, metavar="T", help="0 always takes the likeliest token")
    add("--seed", type=int, metavar="N", help="make the answer repeatable")
    add("--pages", metavar="LIST", help="of the PDFs, such as 1-3,7 (default: all)")
    add("--schema", metavar="PATH", help="a JSON schema that the answer must keep to")
    add("--json", action="store_true", help="print the server's whole reply as JSON, at its end")
    add("--silence", type=float, metavar="SECONDS",
        help="give up when the server says nothing for so long (default: 300)")  # fmt: skip
    _add_server(ask)


def _add_load(bench: argparse.ArgumentParser) -> None:
    bench.description = (
        f"{bench.description}\nEvery answer is checked: its events, its number of tokens, and that "
        "the model saw\nevery picture. The exit status is 1 where one was not right."
    )
    add = bench.add_argument
    add("--concurrency", metavar="LIST",
        help="clients at a time, each a run (default: 1,8,32, of heavy requests 1,8)")  # fmt: skip
    add("--seconds", type=float, metavar="N",
        help="for which each run asks new questions (default: 10)")  # fmt: skip
    add("--scenario", metavar="LIST",
        help="all, or of chat-image, text-only, same-image, photos, eight-images, long-answers, "
        "mixed (default: chat-image)")  # fmt: skip
    add("--rounds", type=int, metavar="N", help="repeat everything; medians count (default: 1)")
    add("--rate", type=float, metavar="N", help="requests a second in mixed (default: 2)")
    add("--patience", type=float, metavar="SECONDS", help="for one answer (default: 300)")
    add("--any-length", action="store_true",
        help="let answers end by themselves, for servers without ignore_eos")  # fmt: skip
    add("--dialect", choices=("loupe", "openai", "openai-plain", "native"),
        help="openai knows ignore_eos, openai-plain no extension, native is Loupe's own "
        "(default: by who answers, loupe or openai)")  # fmt: skip
    add("--output", metavar="FOLDER",
        help="for results.md, results.json and the plots (default: bench-results)")  # fmt: skip
    _add_server(bench)
