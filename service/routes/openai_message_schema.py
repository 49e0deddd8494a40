"""The OpenAI dialect's messages as clients send them: their roles, and the parts within them.

What earlier answers held is taken as it was given, and as the official client library writes it
back; extensions have the names other servers gave them.
"""

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from service.conversation import Detail

MAX_MESSAGES = 4096
MAX_PARTS = 16_384  # over all messages

Text: TypeAlias = str | None
IgnoredText: TypeAlias = Annotated[Text, Meta(description="Ignored.")]
Area: TypeAlias = Annotated[int, Meta(ge=1, le=2**40)]
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
MediaUrl: TypeAlias = Annotated[
    str, Meta(description="An http(s) or `data:` URL, or the id of an uploaded file.")
]

MIN_PIXELS = "Least area after resizing, within the server's bounds."
MAX_PIXELS = "Greatest area after resizing, within the server's bounds."


class RequestObject(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An object of the request."""


class Sized(RequestObject, frozen=True, kw_only=True):
    """An object that says how large the model is to see the pictures in it."""

    min_pixels: Annotated[Area | None, Meta(description=MIN_PIXELS)] = None
    max_pixels: Annotated[Area | None, Meta(description=MAX_PIXELS)] = None


class TextContent(RequestObject, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Text."""

    text: str


class RefusalContent(RequestObject, frozen=True, kw_only=True, tag_field="type", tag="refusal"):
    """What an earlier answer refused, sent back as text."""

    refusal: str


class ImageUrl(RequestObject, frozen=True, kw_only=True):
    """A picture."""

    url: MediaUrl
    detail: Annotated[
        Detail | None,
        Meta(
            description="`low` is at most 512 x 512 pixels in area (256 tokens); the others are "
            "as many as the server takes. `min_pixels` and `max_pixels` are finer."
        ),
    ] = None


class ImageContent(Sized, frozen=True, kw_only=True, tag_field="type", tag="image_url"):
    """A picture among the text."""

    image_url: ImageUrl


class FileReference(RequestObject, frozen=True, kw_only=True):
    """A file: its content or its id, not both."""

    file_data: Annotated[
        Text, Meta(description="The file in base64; a `data:` prefix is allowed.")
    ] = None
    file_id: Annotated[Text, Meta(description="Of a file that was uploaded before.")] = None
    filename: Annotated[Text, Meta(description="Ignored: the bytes tell what it is.")] = None
    pages: Annotated[
        Annotated[str, Meta(max_length=200)] | None,
        Meta(description="Pages of a document, such as `1-3,7`; absent is all."),
    ] = None


class FileContent(Sized, frozen=True, kw_only=True, tag_field="type", tag="file"):
    """A document or a picture among the text."""

    file: FileReference


class VideoUrl(RequestObject, frozen=True, kw_only=True):
    """A video."""

    url: MediaUrl


class VideoContent(Sized, frozen=True, kw_only=True, tag_field="type", tag="video_url"):
    """A video among the text."""

    video_url: VideoUrl


MediaContent: TypeAlias = ImageContent | FileContent | VideoContent
ContentPart: TypeAlias = TextContent | RefusalContent | MediaContent
Content: TypeAlias = str | Annotated[list[ContentPart], Meta(min_length=1, max_length=MAX_MESSAGES)]


class CalledFunction(RequestObject, frozen=True, kw_only=True):
    """A function's name and the arguments of one call."""

    name: Name
    arguments: Annotated[str, Meta(description="JSON text.")]
    parsed_arguments: Annotated[Any, Meta(description="The same, read; ignored.")] = None


class CalledTool(RequestObject, frozen=True, kw_only=True):
    """A call that an earlier answer made."""

    id: Annotated[str, Meta(min_length=1, max_length=256)]
    type: Literal["function"] = "function"
    function: CalledFunction
    index: Annotated[int | None, Meta(description="Ignored.")] = None


class SystemMessage(RequestObject, frozen=True, kw_only=True, tag_field="role", tag="system"):
    """Instructions; text only."""

    content: Content
    name: IgnoredText = None


class DeveloperMessage(SystemMessage, frozen=True, kw_only=True, tag_field="role", tag="developer"):
    """The newer name of a system message."""


class UserMessage(RequestObject, frozen=True, kw_only=True, tag_field="role", tag="user"):
    """The user's turn: text and pictures in any order."""

    content: Content
    name: IgnoredText = None


class AssistantMessage(RequestObject, frozen=True, kw_only=True, tag_field="role", tag="assistant"):
    """An earlier answer, as this service or another gave it; text only."""

    content: Content | None = None
    reasoning_content: Text = None
    reasoning: Annotated[Text, Meta(description="Another name of `reasoning_content`.")] = None
    tool_calls: Annotated[list[CalledTool], Meta(max_length=128)] | None = None
    refusal: Text = None
    name: IgnoredText = None
    annotations: Annotated[list[Any] | None, Meta(description="Ignored.")] = None
    parsed: Annotated[Any, Meta(description="The content, read; ignored.")] = None
    audio: None = None
    function_call: None = None


class ToolMessage(RequestObject, frozen=True, kw_only=True, tag_field="role", tag="tool"):
    """What a called function returned."""

    content: Content
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: IgnoredText = None


ChatMessage: TypeAlias = (
    SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage
)
