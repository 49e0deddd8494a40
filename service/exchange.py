"""One request on its way through: prepared, handed to the engine, answered. Knows no dialect."""

import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

import msgspec

from inference.protocol import FinishReason, Generate, SamplingParams
from service.access.caller import quota_of
from service.account import Account
from service.chat import Chat, Prepared
from service.conversation import Conversation
from service.engine.verdicts import Demand
from service.errors import DeadlineExceeded, DeadlineUnreachable, Overloaded
from service.http.deadline import Deadline
from service.request_log import RequestRecord
from service.text.answer import AnswerDelta, AnswerFinish, Engine, Usage, answer
from service.text.prompt import Prompt


class Exchange:
    """A request and its answers; the figures are complete once the answers are.

    Nothing happens before the answers are asked for, and figures are there from the first delta on.
    """

    def __init__(
        self,
        chat: Chat,
        conversation: Conversation,
        record: RequestRecord,
        *,
        default_max_tokens: bool = False,
        deadline: Deadline | None = None,
    ) -> None:
        """Take one request on.

        record: gets the facts for the request's log line.
        default_max_tokens: the client named no limit, so the one in the conversation gives way to
            the room in the model's context.
        """
        self._chat = chat
        self._deadline = deadline
        self._conversation = conversation
        self._record = record
        self._default_max_tokens = default_max_tokens
        self._prepared: Prepared | None = None
        self._account: Account | None = None

    @property
    def prepared(self) -> Prepared:
        """Tell what the engine got."""
        if self._prepared is None:
            raise RuntimeError("The request is not prepared yet.")
        return self._prepared

    @property
    def usage(self) -> Usage:
        """Count the tokens so far."""
        return self._kept.usage

    @property
    def finishes(self) -> dict[int, AnswerFinish]:
        """Tell how answers ended, by their index."""
        return self._kept.finishes

    @property
    def inference_seconds(self) -> float:
        """Measure from handing the request to the engine to the last token."""
        return self._kept.inference_seconds

    async def deltas(self) -> AsyncGenerator[AnswerDelta, None]:
        """Do the work and give the answers as they grow.

        Closing this early, by whatever way, ends the request in the engine at once.

        Raises:
            ServiceError: there is no answer, or no rest of it.
        """
        if self._record.resumption is None:
            self._chat.verdicts.check(self._record.caller.name, self._demand())
        prepared = await self._chat.prepare(self._conversation, self._record)
        self._prepared = prepared
        sampling = self._sampling(prepared.prompt)
        request_id = self._chat.take_id(self._record.request_id)
        self._record.engine_id = request_id
        self._record.enter("queued")
        self._account = account = Account(self._conversation, prepared, self._record)
        try:
            request = self._request(request_id, prepared, sampling)
            engine: Engine = self._chat.engine
            if self._record.resumption is not None:
                engine = self._record.resumption.around(engine, prepared.prompt)
            growing = answer(engine, request, self._conversation.stop, prepared.vocabulary)
            async with aclosing(growing):
                async for delta in growing:
                    account.note(delta)
                    if delta.finish is not None and delta.finish.reason is FinishReason.DEADLINE:
                        raise DeadlineExceeded(account.spent)
                    yield delta
        except (Overloaded, DeadlineUnreachable) as error:
            self._chat.verdicts.note(self._record.caller.name, error, self._demand())
            raise
        finally:
            self._chat.give_back_id(request_id)
            if self._deadline is not None:
                self._deadline.spent = account.spent
            account.close()

    async def texts(self) -> list[str]:
        """Do the work and give every answer whole, in the order of their indexes."""
        pieces: list[list[str]] = [[] for _ in range(self._conversation.num_answers)]
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                pieces[delta.index].append(delta.text)
        return ["".join(answer_pieces) for answer_pieces in pieces]

    @property
    def _kept(self) -> Account:
        if self._account is None:
            raise RuntimeError("The engine has not been asked yet.")
        return self._account

    def _demand(self) -> Demand:
        seconds_left = self._deadline.seconds_left if self._deadline is not None else math.inf
        return Demand(num_media=len(self._conversation.media), seconds_left=seconds_left)

    def _request(self, request_id: str, prepared: Prepared, sampling: SamplingParams) -> Generate:
        caller = self._record.caller
        return Generate(
            request_id=request_id,
            prompt_token_ids=prepared.prompt.token_ids,
            sampling=sampling,
            visions=prepared.visions,
            num_sequences=self._conversation.num_answers,
            priority=caller.limits.priority,
            tenant=caller.tenant,
            caller=caller.name,
            quota=quota_of(caller),
            deadline_seconds=self._deadline and self._deadline.seconds_left,
            traceparent=self._record.traceparent,
        )

    def _sampling(self, prompt: Prompt) -> SamplingParams:
        sampling = self._conversation.sampling
        max_tokens = sampling.max_tokens
        if self._default_max_tokens:
            max_tokens = min(max_tokens, prompt.max_output_tokens)
        else:
            prompt.require_room(max_tokens)
        grammar = self._conversation.output.grammar(prompt.opens_reasoning) or sampling.grammar
        return msgspec.structs.replace(sampling, max_tokens=max_tokens, grammar=grammar)
