"""From the OpenAI dialect's messages to the canonical ones, order and references checked."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias, assert_never

import msgspec

from service.conversation import (
    Inline,
    MediaPart,
    Message,
    Part,
    Source,
    Stored,
    TextPart,
    ToolCall,
)
from service.errors import FieldInvalid, RequestInvalid
from service.media.source import source_of_url
from service.routes.openai_message_schema import (
    MAX_PARTS,
    AssistantMessage,
    ChatMessage,
    Content,
    ContentPart,
    DeveloperMessage,
    FileContent,
    FileReference,
    ImageContent,
    MediaContent,
    RefusalContent,
    SystemMessage,
    TextContent,
    ToolMessage,
    UserMessage,
    VideoContent,
)
from service.routes.openai_schema import Tool


class PixelBounds(NamedTuple):
    """What the request says for parts that do not say themselves."""

    min_pixels: int | None = None
    max_pixels: int | None = None


def canonical_messages(messages: Sequence[ChatMessage], bounds: PixelBounds) -> tuple[Message, ...]:
    """Translate a conversation.

    Raises:
        RequestInvalid: `messages_invalid` with the place at fault; a file that is not one.
        ImageRefused: a URL that is none.
    """
    _check_number(messages)
    _check_calls(messages)
    return tuple(
        _message(message, f"messages[{place}]", bounds) for place, message in enumerate(messages)
    )


def canonical_tools(tools: Sequence[Tool]) -> tuple[dict[str, object], ...]:
    """Write the functions in the form chat templates take: as sent, without `strict`."""
    return tuple(
        {
            "type": "function",
            "function": {
                name: value
                for name in ("name", "description", "parameters")
                if (value := getattr(tool.function, name)) is not None
            },
        }
        for tool in tools
    )


def _message(message: ChatMessage, param: str, bounds: PixelBounds) -> Message:
    match message:
        case SystemMessage(content=content) | DeveloperMessage(content=content):
            return Message("system", _texts(content, param))
        case UserMessage(content=content):
            return Message("user", tuple(_parts(content, param, bounds)))
        case ToolMessage(content=content, tool_call_id=call_id):
            return Message("tool", tuple(_parts(content, param, bounds)), tool_call_id=call_id)
        case AssistantMessage():
            return _assistant(message, param)
        case _:
            assert_never(message)


def _assistant(message: AssistantMessage, param: str) -> Message:
    if message.content is None and not message.tool_calls and message.refusal is None:
        raise RequestInvalid(
            "messages_invalid",
            "An assistant's message needs content or tool calls.",
            param=f"{param}.content",
        )
    content = message.refusal if message.content is None else message.content
    return Message(
        "assistant",
        () if content is None else _texts(content, param),
        reasoning=message.reasoning_content or message.reasoning or "",
        tool_calls=tuple(
            ToolCall(call.id, call.function.name, call.function.arguments)
            for call in message.tool_calls or ()
        ),
    )


def _texts(content: Content, param: str) -> tuple[Part, ...]:
    if not isinstance(content, str):
        for place, part in enumerate(content):
            if isinstance(part, ImageContent | FileContent | VideoContent):
                raise RequestInvalid(
                    "messages_invalid",
                    "Only user and tool messages may hold pictures.",
                    param=f"{param}.content[{place}]",
                )
    return tuple(_parts(content, param, PixelBounds()))


def _parts(content: Content, param: str, bounds: PixelBounds) -> Iterator[Part]:
    if isinstance(content, str):
        yield TextPart(content)
        return
    for place, part in enumerate(content):
        yield _part(part, f"{param}.content[{place}]", bounds)


def _part(part: ContentPart, param: str, bounds: PixelBounds) -> Part:
    match part:
        case TextContent(text=text) | RefusalContent(refusal=text):
            return TextPart(text)
        case ImageContent(image_url=image):
            param += ".image_url.url"
            medium = MediaPart(
                source=source_of_url(image.url, param), param=param, detail=image.detail or "auto"
            )
        case FileContent(file=file):
            source, field = _file_source(file, f"{param}.file")
            medium = MediaPart(
                source=source, param=field, kinds=("document", "image"), pages=file.pages
            )
        case VideoContent(video_url=video):
            param += ".video_url.url"
            medium = MediaPart(
                source=source_of_url(video.url, param), param=param, kinds=("video",)
            )
        case _:
            assert_never(part)
    return _bounded(medium, part, bounds)


_FileSource: TypeAlias = tuple[Source, str]


def _file_source(file: FileReference, param: str) -> _FileSource:
    match file.file_data, file.file_id:
        case str(text), None:
            return Inline(text), f"{param}.file_data"
        case None, str(file_id):
            return Stored(file_id), f"{param}.file_id"
        case None, None:
            raise RequestInvalid(
                "field_missing", "A file needs file_data or file_id.", param=f"{param}.file_data"
            )
        case _:
            raise RequestInvalid(
                "field_conflict", "Send file_data or file_id, not both.", param=f"{param}.file_id"
            )


def _bounded(medium: MediaPart, part: MediaContent, bounds: PixelBounds) -> MediaPart:
    lower = bounds.min_pixels if part.min_pixels is None else part.min_pixels
    upper = bounds.max_pixels if part.max_pixels is None else part.max_pixels
    if (lower, upper) == (None, None):
        return medium
    return msgspec.structs.replace(medium, min_pixels=lower, max_pixels=upper)


def _check_number(messages: Sequence[ChatMessage]) -> None:
    """Refuse more pieces than any conversation has, before they become several of ours each."""
    num_parts = 0
    for message in messages:
        num_parts += len(message.content) if isinstance(message.content, list) else 1
        if isinstance(message, AssistantMessage):
            num_parts += len(message.tool_calls or ())
    if num_parts > MAX_PARTS:
        raise FieldInvalid(
            "value_out_of_range",
            f"A conversation may have {MAX_PARTS} parts and tool calls.",
            param="messages",
        )


def _check_calls(messages: Sequence[ChatMessage]) -> None:
    """Refuse results of calls that nobody made: the template would show them as the user's."""
    open_calls: set[str] = set()
    for place, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            open_calls = {call.id for call in message.tool_calls or ()}
        elif isinstance(message, ToolMessage) and message.tool_call_id not in open_calls:
            raise RequestInvalid(
                "messages_invalid",
                "A tool's message must follow the assistant's message that made its call.",
                param=f"messages[{place}].tool_call_id",
            )
