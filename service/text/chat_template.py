"""A checkpoint's chat template, compiled so that only its own special tokens count.

The template's source is marked before it is compiled: each special token it spells becomes an
unguessable mark around the token's id. What a client writes passes through the template untouched
and can never become such a mark, whatever the template does with it. Knows nothing of tokenising
text or of pictures.
"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import msgspec
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

Fields: TypeAlias = Mapping[str, Any]
Segments: TypeAlias = list[str | int]

_MARK_END = "\U000f0001"


class ChatTemplate:
    """Renders messages to plain text and the special tokens between its pieces.

    common_texts: pieces that most conversations share, such as what opens the assistant's turn.
    """

    def __init__(
        self, source: str, special_tokens: Mapping[str, int], variables: Mapping[str, str]
    ) -> None:
        """Compile `source`.

        special_tokens: spelling to id. variables: what the template may name, such as `eos_token`.

        Raises:
            TemplateError: not a Jinja template.
            ValueError: it composes special tokens from pieces, so that they cannot be told from
                a client's text.
        """
        # Drawn once a process: no client can write a mark, because no client can guess it.
        self._mark_start = f"\U000f0000{secrets.token_hex(8)}"
        self._mark = re.compile(f"{self._mark_start}([0-9]+){_MARK_END}")
        spellings = sorted(special_tokens, key=len, reverse=True)
        self._spelling = re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
        self._special_tokens = special_tokens
        environment = _environment()
        self._template = environment.from_string(self._marked(source))
        # Jinja chains dicts here, and copies the chain at every rendering: a fifth of its time.
        self._template.globals = dict(self._template.globals)
        self._variables = {name: self._marked(text) for name, text in variables.items()}
        self.common_texts = self._checked(
            environment.from_string(source).render(**_probe(), **variables)
        )

    def render(self, messages: Sequence[Fields], tools: Sequence[Fields] | None = None) -> Segments:
        """Render messages, ready for the assistant's answer.

        Returns:
            Text, id, text, id, ..., text: between two pieces of text stands one special token.

        Raises:
            TemplateError: the template refuses these messages.
        """
        rendered = self._template.render(
            messages=messages, tools=tools, add_generation_prompt=True, **self._variables
        )
        segments: Segments = [*self._mark.split(rendered)]
        segments[1::2] = [int(segment) for segment in segments[1::2]]
        return segments

    def _marked(self, source: str) -> str:
        return self._spelling.sub(
            lambda match: f"{self._mark_start}{self._special_tokens[match[0]]}{_MARK_END}", source
        )

    def _checked(self, plain: str) -> frozenset[str]:
        """Compare with the unmarked template: both must agree on every special token."""
        spellings = {token_id: spelling for spelling, token_id in self._special_tokens.items()}
        segments = self.render(_probe()["messages"])
        texts = [spellings[part] if isinstance(part, int) else part for part in segments]
        if "".join(texts) != plain or any(map(self._spelling.search, texts[::2])):
            raise ValueError(
                "The chat template composes its special tokens in a way not supported."
            )
        return frozenset(texts[::2])


class _NamedTemplate(msgspec.Struct):
    name: str
    template: str


class _AddedToken(msgspec.Struct):
    content: str


class _TemplateFile(msgspec.Struct):
    """What matters here of `tokenizer_config.json` and of the older `chat_template.json`."""

    chat_template: str | list[_NamedTemplate] | None = None
    bos_token: str | _AddedToken | None = None
    eos_token: str | _AddedToken | None = None
    pad_token: str | _AddedToken | None = None
    unk_token: str | _AddedToken | None = None


def read_chat_template(checkpoint: Path, special_tokens: Mapping[str, int]) -> ChatTemplate:
    """Find and compile a checkpoint's chat template, in transformers' order of preference.

    Raises:
        ValueError: there is none, or none that this service can use.
    """
    config = _read(checkpoint / "tokenizer_config.json")
    variables = {
        name: token if isinstance(token, str) else token.content
        for name in ("bos_token", "eos_token", "pad_token", "unk_token")
        if (token := getattr(config, name)) is not None
    }
    jinja = checkpoint / "chat_template.jinja"
    source = (
        jinja.read_text(encoding="utf-8")
        if jinja.exists()
        else _default(_read(checkpoint / "chat_template.json").chat_template)
        or _default(config.chat_template)
    )
    if source is None:
        raise ValueError("The checkpoint has no chat template.")
    try:
        return ChatTemplate(source, special_tokens, variables)
    except TemplateError as error:
        raise ValueError("The checkpoint's chat template is no template.") from error


def _read(path: Path) -> _TemplateFile:
    if not path.exists():
        return _TemplateFile()
    return msgspec.json.decode(path.read_bytes(), type=_TemplateFile)


def _default(template: str | list[_NamedTemplate] | None) -> str | None:
    if isinstance(template, list):
        return next((named.template for named in template if named.name == "default"), None)
    return template


class _GenerationTag(Extension):
    """Accepts `{% generation %}`, which marks the assistant's words for training only."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is not a ClassVar

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Stand for the body alone."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    """Set Jinja up as transformers 5.23 `_compile_jinja_template` does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    # Jinja leaves the types of both dicts open.
    filters = cast("dict[str, object]", environment.filters)  # pyright: ignore[reportUnknownMemberType]
    names = cast("dict[str, object]", environment.globals)  # pyright: ignore[reportUnknownMemberType]
    filters["tojson"] = _tojson
    names["raise_exception"] = _raise_exception
    names["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:  # noqa: A002 - the name templates may pass it by
    return datetime.now().astimezone().strftime(format)


def _probe() -> dict[str, Any]:
    """Make a conversation that visits a template's usual branches."""
    return {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}],
            },
            {"role": "assistant", "content": "A circle."},
            {"role": "user", "content": "Sure?"},
        ],
        "add_generation_prompt": True,
        "tools": None,
    }
