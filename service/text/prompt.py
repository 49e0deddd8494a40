"""From a conversation to the token ids the engine sees.

Only the chat template makes special tokens: a client's text that spells one stays text. Everything
else is tokenised as transformers' `apply_chat_template` does it, merges across the seams between
template and client text included. Knows nothing of pixels, only of sizes and times.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

from anyio import to_thread
from jinja2 import TemplateError
from tokenizers import Tokenizer

from inference.protocol import ModelFacts
from service.conversation import MediaPart, Message, TextPart, ToolCall
from service.errors import ContextLengthExceeded, RequestInvalid
from service.media.medium import Document
from service.media.sampled_video import SampledVideo
from service.text.chat_template import Fields, Segments, read_chat_template
from service.text.reasoning import opens_reasoning

# Measured on one slow core: 2,000 characters of English take 0.6 ms, of Chinese 0.9 ms. Longer
# texts would hold the event loop for more than the millisecond it can spare.
MAX_CHARACTERS_ON_LOOP = 2000
# A text that is tokenised takes up to 200 times its own memory, until its tokens are known. Longer
# ones are counted piece by piece first, and only those that may fit are tokenised whole.
_MAX_CHARACTERS_AT_ONCE = 100_000
# Words that a cut parts have more tokens than whole ones; far fewer than this.
_MAX_TOKENS_BY_A_CUT = 1000


class Picture(Protocol):
    """All that a prompt depends on of a picture or a page: its size after resizing.

    Both are multiples of patch_size x merge_size.
    """

    @property
    def height(self) -> int:
        """Rows of pixels."""
        ...

    @property
    def width(self) -> int:
        """Columns of pixels."""
        ...


Viewed: TypeAlias = Picture | Document | SampledVideo


class Prompt(NamedTuple):
    """What the engine is to continue.

    token_ids: special tokens included, every visual placeholder expanded.
    num_text_tokens: the rest of token_ids, template and times included.
    num_image_tokens: of pictures, pages and videos.
    max_output_tokens: room left in the context, at least 1. A dialect whose token limit is only a
        default clamps it to this; one whose client named a limit refuses a larger one with
        `require_room`.
    opens_reasoning: the answer begins inside the reasoning, as a thinking model's does.
    num_pages: of documents.
    """

    token_ids: list[int]
    num_text_tokens: int
    num_image_tokens: int
    max_output_tokens: int
    opens_reasoning: bool = False
    num_pages: int = 0

    def require_room(self, num_tokens: int) -> None:
        """Refuse a request for more output tokens than the context has room for.

        Raises:
            ContextLengthExceeded: with both numbers.
        """
        if num_tokens > self.max_output_tokens:
            raise ContextLengthExceeded(
                needed=len(self.token_ids) + num_tokens,
                allowed=len(self.token_ids) + self.max_output_tokens,
            )


class PromptBuilder:
    """Builds prompts for one checkpoint; safe to share between threads."""

    def __init__(self, model: ModelFacts) -> None:
        """Load the tokenizer and the chat template from `model.path`.

        Raises:
            ValueError: no template, or one whose special tokens cannot be told from text.
        """
        checkpoint = Path(model.path)
        self.tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        # "Encode" them as the plain text they are: the template's own never reach the tokenizer.
        self.tokenizer.encode_special_tokens = True
        self._model = model
        self._template = read_chat_template(
            checkpoint,
            special_tokens={
                token.content: token_id
                for token_id, token in self.tokenizer.get_added_tokens_decoder().items()
                if token.special
            },
        )
        # Most pieces of most prompts; half of a short prompt's cost.
        common = sorted(self._template.common_texts)
        self._common = dict(zip(common, self._encode(common), strict=True))

    async def build_async(
        self,
        messages: Sequence[Message],
        media: Sequence[Viewed],
        tools: Sequence[Fields] = (),
    ) -> Prompt:
        """Do as `build`, in a thread for tools or a text longer than MAX_CHARACTERS_ON_LOOP."""
        if not tools and _num_characters(messages) <= MAX_CHARACTERS_ON_LOOP:
            return self.build(messages, media, tools)
        return await to_thread.run_sync(self.build, messages, media, tools)

    async def tokenise_async(self, text: str) -> list[int]:
        """Make the tokens of a text alone, without a template.

        Raises:
            RequestInvalid: the text is not Unicode.
        """
        if len(text) <= MAX_CHARACTERS_ON_LOOP:
            return self._encode([text])[0]
        return (await to_thread.run_sync(self._encode, [text]))[0]

    def build(
        self,
        messages: Sequence[Message],
        media: Sequence[Viewed],
        tools: Sequence[Fields] = (),
    ) -> Prompt:
        """Render, tokenise and expand.

        media: of every MediaPart, in prompt order.
        tools: function schemas for the template, in the form transformers takes.

        Raises:
            RequestInvalid: the template cannot hold these messages, or a text is not Unicode.
            ContextLengthExceeded: the prompt leaves no room for an answer.
        """
        segments = self._render(messages, media, tools)
        self._check_placeholders(segments, media)
        segments = self._with_times(segments, media)
        image_token_counts = [self._num_image_tokens(sight) for sight in _sights_of(media)]
        token_ids = self._tokenise(segments, image_token_counts)
        room = self._model.max_model_len - len(token_ids)
        if room < 1:
            raise ContextLengthExceeded(
                needed=len(token_ids) + 1, allowed=self._model.max_model_len
            )
        num_image_tokens = sum(image_token_counts)
        return Prompt(
            token_ids,
            len(token_ids) - num_image_tokens,
            num_image_tokens,
            room,
            opens_reasoning(str(segments[-1])),
            sum(len(medium.pages) for medium in media if isinstance(medium, Document)),
        )

    def _render(
        self,
        messages: Sequence[Message],
        media: Sequence[Viewed],
        tools: Sequence[Fields],
    ) -> Segments:
        coming = iter(media)
        fields = [_fields(message, coming) for message in messages]
        try:
            return self._template.render(fields, tools or None)
        except TemplateError as error:
            raise RequestInvalid(
                "messages_invalid",
                "The model's chat template does not take these messages.",
                param="messages",
            ) from error

    def _check_placeholders(self, segments: Segments, media: Sequence[Viewed]) -> None:
        visual_ids = (self._model.image_token_id, self._model.video_token_id)
        expected: list[int] = []
        for medium in media:
            num_pages = len(medium.pages) if isinstance(medium, Document) else 1
            expected += [visual_ids[isinstance(medium, SampledVideo)]] * num_pages
        if [special_id for special_id in segments[1::2] if special_id in visual_ids] != expected:
            raise RequestInvalid(
                "messages_invalid",
                "This model takes no such medium in a message of that role.",
                param="messages",
            )

    def _with_times(self, segments: Segments, media: Sequence[Viewed]) -> Segments:
        """Put one placeholder for every temporal patch of a video, each behind its time.

        Source: transformers 5.23 `Qwen3VLProcessor.replace_video_token`.
        """
        videos = iter([medium for medium in media if isinstance(medium, SampledVideo)])
        model = self._model
        timed: Segments = [segments[0]]
        for special_id, text in zip(segments[1::2], segments[2::2], strict=True):
            if special_id == model.video_token_id:
                for seconds in next(videos).timestamps:
                    timed[-1] = f"{timed[-1]}<{seconds:.1f} seconds>"
                    timed += [model.vision_start_token_id, "", special_id, ""]
                    timed += [model.vision_end_token_id, ""]
                timed[-1] = text
            else:
                timed += [special_id, text]
        return timed

    def _tokenise(self, segments: Segments, image_token_counts: list[int]) -> list[int]:
        texts = [segment for segment in segments if isinstance(segment, str)]
        self._check_length(texts)
        encoded = iter(self._encode([text for text in texts if text not in self._common]))
        pieces = [self._common[text] if text in self._common else next(encoded) for text in texts]
        counts = iter(image_token_counts)
        token_ids = list(pieces[0])
        for special_id, piece in zip(segments[1::2], pieces[1:], strict=True):
            is_visual = special_id in (self._model.image_token_id, self._model.video_token_id)
            token_ids.extend([int(special_id)] * (next(counts) if is_visual else 1))
            token_ids.extend(piece)
        return token_ids

    def _check_length(self, texts: list[str]) -> None:
        """Refuse what is far too long before it is tokenised whole.

        Raises:
            ContextLengthExceeded: with the tokens counted until that was certain.
        """
        if sum(map(len, texts)) <= _MAX_CHARACTERS_AT_ONCE:
            return
        num_tokens, slack = 0, 0
        for text in texts:
            for start in range(0, len(text), _MAX_CHARACTERS_AT_ONCE):
                (token_ids,) = self._encode([text[start : start + _MAX_CHARACTERS_AT_ONCE]])
                num_tokens += len(token_ids)
                slack += _MAX_TOKENS_BY_A_CUT if start else 0
                if num_tokens - slack > self._model.max_model_len:
                    raise ContextLengthExceeded(
                        needed=num_tokens - slack, allowed=self._model.max_model_len, is_least=True
                    )

    def _encode(self, texts: list[str]) -> list[list[int]]:
        is_short = sum(map(len, texts)) <= MAX_CHARACTERS_ON_LOOP
        try:
            # Only the batch releases the interpreter for the other threads; for a short text,
            # taking it back costs more than the work.
            encodings = (
                [self.tokenizer.encode(text, add_special_tokens=False) for text in texts]
                if is_short
                else self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            )
        except (TypeError, UnicodeEncodeError) as error:
            raise RequestInvalid("text_invalid", "A text is not valid Unicode.") from error
        return [encoding.ids for encoding in encodings]

    def _num_image_tokens(self, picture: Picture) -> int:
        side = self._model.patch_size * self._model.merge_size
        return (picture.height // side) * (picture.width // side)


def _fields(message: Message, media: Iterator[Viewed]) -> Fields:
    """Write a message as templates expect it, taking its media from those still to come."""
    fields: dict[str, Any] = {"role": str(message.role), "content": _content(message, media)}
    if message.reasoning:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _content(message: Message, media: Iterator[Viewed]) -> str | list[Fields]:
    """Write a message's parts; plain text as a plain string."""
    match message.parts:
        case ():
            return ""
        case (TextPart(text),):
            return text
        case parts:
            return [item for part in parts for item in _items(part, media)]


def _items(part: TextPart | MediaPart, media: Iterator[Viewed]) -> Iterator[Fields]:
    if isinstance(part, TextPart):
        yield {"type": "text", "text": part.text}
        return
    match next(media, None):
        case Document() as document:
            for page in document.pages:
                yield {"type": "text", "text": f"Page {page.number} of {document.num_pages}:\n"}
                yield {"type": "image"}
                yield {"type": "text", "text": "\n"}
        case SampledVideo():
            yield {"type": "video"}
        case _:
            yield {"type": "image"}


def _call(call: ToolCall) -> Fields:
    # As text, the arguments stay as the model wrote them; templates take either.
    return {
        "type": "function",
        "id": call.id,
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _sights_of(media: Sequence[Viewed]) -> Iterator[Picture]:
    """Give what stands behind each placeholder: a picture, a page, or a temporal patch."""
    for medium in media:
        match medium:
            case Document():
                yield from (page.image for page in medium.pages)
            case SampledVideo():
                yield from [medium] * len(medium.timestamps)
            case _:
                yield medium


def _num_characters(messages: Sequence[Message]) -> int:
    return sum(
        len(part.text)
        for message in messages
        for part in message.parts
        if isinstance(part, TextPart)
    )
