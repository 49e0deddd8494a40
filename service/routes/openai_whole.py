"""The OpenAI dialect's reply in one piece: the same events as a stream's, gathered."""

from collections.abc import Collection
from contextlib import aclosing
from typing import assert_never

from msgspec import UNSET

from inference.protocol import TokenLogprob
from service.exchange import Exchange
from service.routes.openai_answer import (
    AnswerEvent,
    AnswerReader,
    ReasoningText,
    choice_logprobs,
    completion_usage,
    finish_reason,
    stop_reason,
)
from service.routes.openai_reply import (
    CompletionChoice,
    CompletionMessage,
    CompletionUsage,
    FunctionCall,
    MessageToolCall,
)
from service.text.answer import AnswerDelta, AnswerFinish
from service.text.detokenizer import Vocabulary
from service.text.tool_calls import CallArguments, CallStarted, ContentText


class WholeAnswers:
    """One request's answers. functions: the names of those that may be called."""

    def __init__(self, exchange: Exchange, functions: Collection[str]) -> None:
        self._exchange = exchange
        self._functions = functions
        self._answers: dict[int, _Answer] = {}

    async def choices(self) -> list[CompletionChoice]:
        """Do the work and give every answer, in the order of their indexes."""
        async with aclosing(self._exchange.deltas()) as deltas:
            async for delta in deltas:
                answer = self._answers.get(delta.index)
                if answer is None:
                    opens_reasoning = self._exchange.prepared.prompt.opens_reasoning
                    reader = AnswerReader(self._functions, opens_reasoning=opens_reasoning)
                    answer = self._answers[delta.index] = _Answer(reader)
                answer.add(delta)
        vocabulary = self._exchange.prepared.vocabulary
        finishes = self._exchange.finishes
        return [
            self._answers[index].choice(index, finishes[index], vocabulary)
            for index in sorted(self._answers)
        ]

    def usage(self) -> CompletionUsage:
        """Count the tokens, once the answers are complete."""
        num_reasoning_tokens = sum(
            answer.reader.num_reasoning_tokens for answer in self._answers.values()
        )
        return completion_usage(self._exchange.usage, num_reasoning_tokens)


class _Answer:
    """One answer as it grows."""

    def __init__(self, reader: AnswerReader) -> None:
        self.reader = reader
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[CallStarted] = []
        self._arguments: list[list[str]] = []
        self._logprobs = list[TokenLogprob]()

    def add(self, delta: AnswerDelta) -> None:
        self._logprobs += delta.logprobs
        for event in self.reader.read(delta):
            self._take(event)

    def choice(self, index: int, finish: AnswerFinish, vocabulary: Vocabulary) -> CompletionChoice:
        content, reasoning = "".join(self._content), "".join(self._reasoning)
        return CompletionChoice(
            index=index,
            message=CompletionMessage(
                content=None if self._calls and not content else content,
                reasoning_content=reasoning or UNSET,
                tool_calls=self._tool_calls() or UNSET,
            ),
            logprobs=choice_logprobs(self._logprobs, vocabulary),
            finish_reason=finish_reason(finish, has_called=bool(self._calls)),
            stop_reason=stop_reason(finish),
        )

    def _take(self, event: AnswerEvent) -> None:
        match event:
            case ReasoningText(text):
                self._reasoning.append(text)
            case ContentText(text):
                self._content.append(text)
            case CallStarted():
                self._calls.append(event)
                self._arguments.append([])
            case CallArguments(index, text):
                self._arguments[index].append(text)
            case _:
                assert_never(event)

    def _tool_calls(self) -> list[MessageToolCall]:
        return [
            MessageToolCall(
                id=call.id, function=FunctionCall(name=call.name, arguments="".join(pieces))
            )
            for call, pieces in zip(self._calls, self._arguments, strict=True)
        ]
