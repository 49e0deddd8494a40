"""One answer as it grows, parted into what the OpenAI dialect tells apart.

Knows texts and tokens, not how they are told: streams and whole replies read the same events.
"""

from collections.abc import Collection
from typing import NamedTuple, TypeAlias

from inference.protocol import FinishReason, TokenLogprob
from service.routes import openai_reply as reply
from service.text.answer import AnswerDelta, AnswerFinish, Usage
from service.text.detokenizer import Vocabulary
from service.text.reasoning import ReasoningSplitter
from service.text.tool_calls import CallArguments, CallStarted, ContentText, ToolCallSplitter

REPETITION = "repetition"


class ReasoningText(NamedTuple):
    """A piece of what the model thought before it answered."""

    text: str


AnswerEvent: TypeAlias = ReasoningText | ContentText | CallStarted | CallArguments


class AnswerReader:
    """Reads one answer's deltas in order.

    num_reasoning_tokens: so far; tokens that came together count as what the first of them was.
    """

    def __init__(self, functions: Collection[str], *, opens_reasoning: bool) -> None:
        """functions: the names of those that may be called."""
        self._reasoning = ReasoningSplitter(opens_reasoning)
        self._calls = ToolCallSplitter(functions)
        self._is_reasoning = opens_reasoning
        self.num_reasoning_tokens = 0

    @property
    def has_called(self) -> bool:
        """Tell whether a call has started."""
        return self._calls.num_calls > 0

    def read(self, delta: AnswerDelta) -> list[AnswerEvent]:
        """Give what is certain of the answer by now; with the last delta, the rest."""
        pieces = self._reasoning.feed(delta.text)
        if delta.finish is not None:
            pieces += self._reasoning.finish()
        if pieces[0].is_reasoning if pieces else self._is_reasoning:
            self.num_reasoning_tokens += len(delta.token_ids)
        events: list[AnswerEvent] = []
        for piece in pieces:
            self._is_reasoning = piece.is_reasoning
            if piece.is_reasoning:
                events.append(ReasoningText(piece.text))
            else:
                events += self._calls.feed(piece.text)
        if delta.finish is not None:
            events += self._calls.finish()
        return events


def finish_reason(finish: AnswerFinish, *, has_called: bool) -> reply.FinishReason:
    """Say why an answer ended; one that was cut is told as cut, whatever it called."""
    if finish.reason is FinishReason.LENGTH:
        return "length"
    return "tool_calls" if has_called else "stop"


def stop_reason(finish: AnswerFinish) -> str | None:
    """Say what ended an answer besides its own end: a stop string, or its repeating itself."""
    return REPETITION if finish.detail == REPETITION else finish.stop


def completion_usage(usage: Usage, num_reasoning_tokens: int) -> reply.CompletionUsage:
    """Count a request's tokens, over all its answers."""
    return reply.CompletionUsage(
        prompt_tokens=usage.num_prompt_tokens,
        completion_tokens=usage.num_output_tokens,
        total_tokens=usage.num_prompt_tokens + usage.num_output_tokens,
        prompt_tokens_details=reply.PromptTokensDetails(
            cached_tokens=usage.num_cached_tokens,
            text_tokens=usage.num_text_tokens,
            image_tokens=usage.num_image_tokens,
        ),
        completion_tokens_details=reply.CompletionTokensDetails(
            reasoning_tokens=num_reasoning_tokens
        ),
        document_pages=usage.num_pages,
    )


def choice_logprobs(
    logprobs: list[TokenLogprob], vocabulary: Vocabulary
) -> reply.ChoiceLogprobs | None:
    """Spell tokens and their likelihoods; None where none were asked for."""
    if not logprobs:
        return None
    return reply.ChoiceLogprobs(content=[_content_logprob(each, vocabulary) for each in logprobs])


def _content_logprob(logprob: TokenLogprob, vocabulary: Vocabulary) -> reply.ContentLogprob:
    spelling = vocabulary.spell(logprob.token_id)
    return reply.ContentLogprob(
        token=spelling.decode(errors="replace"),
        logprob=logprob.logprob,
        bytes=list(spelling),
        top_logprobs=[
            reply.TopLogprob(
                token=(top := vocabulary.spell(token_id)).decode(errors="replace"),
                logprob=value,
                bytes=list(top),
            )
            for token_id, value in logprob.top
        ],
    )
