"""From a canonical request to its answers: pictures, prompt, engine, text. Knows no dialect."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple, Protocol
from uuid import uuid4

import anyio
import anyio.to_thread
import msgspec
import structlog

from inference.protocol import (
    Admission,
    FinishReason,
    Generate,
    Limits,
    ModelFacts,
    SamplingParams,
    Stats,
    Vision,
)
from service.access.caller import quota_of
from service.answer import AnswerDelta, AnswerFinish, Engine, Usage, answer, count_usage
from service.conversation import Conversation, MediaPart
from service.deadline import Deadline
from service.detokenizer import Vocabulary
from service.errors import ClientError, DeadlineExceeded, EngineUnavailable, Spent
from service.heap import return_unused_memory
from service.media.decoded_image import DecodedImage
from service.media.intake import MediaIntake
from service.media.medium import Medium, sights_of
from service.media.model_bounds import ModelBounds, read_model_bounds
from service.media.sampled_video import SampledVideo
from service.prompt import Prompt, PromptBuilder
from service.request_log import RequestRecord
from service.stages import milliseconds

_ENDS_BY_ITSELF = (FinishReason.STOP, FinishReason.LENGTH)

logger = structlog.get_logger()


class ConnectedEngine(Engine, Protocol):
    """What the web side needs of `EngineClient`: to generate, and to know how the engine is."""

    @property
    def model(self) -> ModelFacts | None:
        """The loaded checkpoint; None until an engine was ready once."""
        ...

    @property
    def limits(self) -> Limits | None:
        """What the engine can hold; None until one was ready once."""
        ...

    @property
    def stats(self) -> Stats | None:
        """The engine's latest figures."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken."""
        ...

    async def wait_ready(self) -> None:
        """Wait until an engine is warm and connected."""
        ...


class _Checkpoint(NamedTuple):
    """The web side's half of the loaded model."""

    model: ModelFacts
    prompts: PromptBuilder
    vocabulary: Vocabulary
    bounds: ModelBounds


class Chat:
    """Answers conversations; one per worker.

    engine: shown to health and metrics as well.
    """

    def __init__(self, engine: ConnectedEngine, intake: MediaIntake) -> None:
        self.engine = engine
        self._intake = intake
        self._checkpoint: _Checkpoint | None = None
        self._loading = anyio.Lock()
        self._ids_in_flight: set[str] = set()

    @property
    def model(self) -> ModelFacts:
        """Tell what is served.

        Raises:
            EngineUnavailable: no engine was ready yet.
        """
        model = self.engine.model
        if model is None:
            raise EngineUnavailable("engine_starting", "The engine is starting.")
        return model

    @property
    def is_ready(self) -> bool:
        """Tell whether a request would be answered now."""
        return self._checkpoint is not None and self.engine.is_ready

    @property
    def was_ready(self) -> bool:
        """Tell whether there was a time when requests were answered."""
        return self._checkpoint is not None

    async def load(self) -> None:
        """Wait for the engine, then load the tokenizer, so that no request waits for it."""
        try:
            await self.engine.wait_ready()
            await self._current_checkpoint()
        except Exception:
            logger.exception("The checkpoint's text side cannot be loaded")

    def begin(
        self,
        conversation: Conversation,
        record: RequestRecord,
        *,
        default_max_tokens: bool = False,
        deadline: Deadline | None = None,
    ) -> "Exchange":
        """Make one request's exchange; nothing happens before its answers are asked for.

        record: gets the facts for the request's log line.
        default_max_tokens: the client named no limit, so the one in the conversation gives way to
            the room in the model's context.
        """
        return Exchange(
            self, conversation, record, default_max_tokens=default_max_tokens, deadline=deadline
        )

    async def prepare(self, conversation: Conversation, record: RequestRecord) -> "Prepared":
        """Take in the media and build the prompt: all that happens before the engine.

        Raises:
            ServiceError: a medium or the prompt cannot be used, or there is no engine yet.
        """
        checkpoint = await self._current_checkpoint()
        earlier = record.resumption and record.resumption.prepared
        if earlier is not None:
            prompt, visions = earlier
            return Prepared(prompt, [], visions, checkpoint.vocabulary)
        parts = conversation.media
        media = await self._intake.take_in(parts, checkpoint.bounds, record) if parts else []
        record.enter("prompt")
        started_at = time.perf_counter()
        prompt = await checkpoint.prompts.build_async(
            conversation.messages, media, conversation.tools
        )
        record.stages.prompt = milliseconds(time.perf_counter() - started_at)
        record.model_name = checkpoint.model.name
        visions = [_vision(sight) for sight in sights_of(media)]
        if visions:
            record.facts["num_images"] = len(visions)
        return Prepared(prompt, media, visions, checkpoint.vocabulary)

    async def faults_of(
        self, parts: Sequence[MediaPart], record: RequestRecord
    ) -> list[ClientError]:
        """Tell of every medium whether it could be used alone; those that could are left out."""
        checkpoint = await self._current_checkpoint()
        faults: list[ClientError] = []
        for part in parts:
            try:
                await self._intake.take_in([part], checkpoint.bounds, record)
            except ClientError as error:
                faults.append(error)
        return faults

    async def tokenise(self, text: str) -> list[int]:
        """Make the tokens of a text alone; spelt special tokens stay text.

        Raises:
            ServiceError: the text is not Unicode, or there is no engine yet.
        """
        checkpoint = await self._current_checkpoint()
        return await checkpoint.prompts.tokenise_async(text)

    async def spell(self, token_ids: Sequence[int]) -> str:
        """Join the tokens' text, special ones included; ids without a token are nothing.

        Raises:
            ServiceError: there is no engine yet.
        """
        checkpoint = await self._current_checkpoint()
        return await anyio.to_thread.run_sync(checkpoint.vocabulary.spell_all, token_ids)

    def take_id(self, request_id: str) -> str:
        """Make the engine's id of a request: the client's own, unless that is in flight."""
        if request_id in self._ids_in_flight:
            request_id = f"{request_id}-{uuid4().hex}"
        self._ids_in_flight.add(request_id)
        return request_id

    def give_back_id(self, request_id: str) -> None:
        """End whatever the engine still does for an id, and free the id."""
        self.engine.cancel(request_id)
        self._ids_in_flight.discard(request_id)

    async def _current_checkpoint(self) -> _Checkpoint:
        model = self.model
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.model is model:
            return checkpoint
        async with self._loading:
            if self._checkpoint is None or self._checkpoint.model != model:
                self._checkpoint = await anyio.to_thread.run_sync(_load_checkpoint, model)
            else:
                self._checkpoint = self._checkpoint._replace(model=model)
            return self._checkpoint


class Prepared(NamedTuple):
    """A request as the engine will get it.

    media: what is to be looked at, a medium a part, in prompt order; not there when another process
        had prepared it.
    """

    prompt: Prompt
    media: list[Medium]
    visions: list[Vision]
    vocabulary: Vocabulary


class Exchange:
    """One request on its way through; the figures are complete once the answers are.

    inference_seconds: from handing the request to the engine to the last token.
    finishes: of the answers that have ended, by their index.
    """

    def __init__(
        self,
        chat: Chat,
        conversation: Conversation,
        record: RequestRecord,
        *,
        default_max_tokens: bool,
        deadline: Deadline | None,
    ) -> None:
        self._chat = chat
        self._deadline = deadline
        self._conversation = conversation
        self._record = record
        self._default_max_tokens = default_max_tokens
        self._prepared: Prepared | None = None
        self.inference_seconds = 0.0
        self.finishes: dict[int, AnswerFinish] = {}
        self._admissions: dict[int, Admission] = {}
        self._num_delivered = 0
        self._token_times: dict[int, float] = {}

    @property
    def prepared(self) -> Prepared:
        """Tell what the engine got; known from the first delta on."""
        if self._prepared is None:
            raise RuntimeError("The request is not prepared yet.")
        return self._prepared

    @property
    def usage(self) -> Usage:
        """Count the tokens so far; answers that did not end were work all the same."""
        prompt = self.prepared.prompt
        usage = count_usage(prompt, self._admissions.values(), self.finishes.values())
        num_output_tokens = max(usage.num_output_tokens, self._num_delivered)
        return usage._replace(num_output_tokens=num_output_tokens)

    async def deltas(self) -> AsyncGenerator[AnswerDelta, None]:
        """Do the work and give the answers as they grow.

        Closing this early, by whatever way, ends the request in the engine at once.

        Raises:
            ServiceError: there is no answer, or no rest of it.
        """
        prepared = await self._chat.prepare(self._conversation, self._record)
        self._prepared, prompt = prepared, prepared.prompt
        sampling = self._sampling(prompt)
        request_id = self._chat.take_id(self._record.request_id)
        caller = self._record.caller
        self._record.engine_id = request_id
        self._record.enter("queued")
        started_at = time.perf_counter()
        try:
            request = Generate(
                request_id=request_id,
                prompt_token_ids=prompt.token_ids,
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
            engine: Engine = self._chat.engine
            if self._record.resumption is not None:
                engine = self._record.resumption.around(engine, prompt)
            growing = answer(engine, request, self._conversation.stop, prepared.vocabulary)
            async with aclosing(growing):
                async for delta in growing:
                    if "first_token_ms" not in self._record.facts:
                        self._note_first_delta(delta, started_at)
                    self._note_tokens(delta)
                    if delta.admission is not None:
                        self._note_admission(delta.index, delta.admission)
                    if delta.finish is not None:
                        self._note_finish(delta.index, delta.finish)
                        if delta.finish.reason is FinishReason.DEADLINE:
                            raise DeadlineExceeded(self._spent())
                    yield delta
        finally:
            self._chat.give_back_id(request_id)
            if self._deadline is not None:
                self._deadline.spent = self._spent()
            self.inference_seconds = time.perf_counter() - started_at
            self._note_facts()
            self._note_work()

    async def texts(self) -> list[str]:
        """Do the work and give every answer whole, in the order of their indexes."""
        pieces: list[list[str]] = [[] for _ in range(self._conversation.num_answers)]
        async with aclosing(self.deltas()) as deltas:
            async for delta in deltas:
                pieces[delta.index].append(delta.text)
        return ["".join(answer_pieces) for answer_pieces in pieces]

    def _sampling(self, prompt: Prompt) -> SamplingParams:
        sampling = self._conversation.sampling
        max_tokens = sampling.max_tokens
        if self._default_max_tokens:
            max_tokens = min(max_tokens, prompt.max_output_tokens)
        else:
            prompt.require_room(max_tokens)
        grammar = self._conversation.output.grammar(prompt.opens_reasoning) or sampling.grammar
        return msgspec.structs.replace(sampling, max_tokens=max_tokens, grammar=grammar)

    def _note_tokens(self, delta: AnswerDelta) -> None:
        """Count tokens as they come, and the time since those before them."""
        if not delta.token_ids:
            return
        now, metrics = time.perf_counter(), self._record.metrics
        before = self._token_times.get(delta.index)
        if before is not None:
            metrics.between_tokens(now - before, len(delta.token_ids))
        self._token_times[delta.index] = now
        self._num_delivered += len(delta.token_ids)
        metrics.tokens(len(delta.token_ids))

    def _note_first_delta(self, delta: AnswerDelta, started_at: float) -> None:
        record, now = self._record, time.perf_counter()
        record.facts["first_token_ms"] = milliseconds(now - started_at)
        if delta.finish is None or delta.finish.reason in _ENDS_BY_ITSELF:
            record.enter("decode")
            record.metrics.first_token(now - record.started_at)
        elif delta.admission is not None:
            record.enter("prefill")

    def _note_admission(self, index: int, admission: Admission) -> None:
        self._admissions[index] = admission
        if index == 0:
            stages = self._record.stages
            stages.queue = milliseconds(admission.queue_seconds)
            stages.prefill = milliseconds(admission.prefill_seconds)
            if self._conversation.media:
                stages.vision = milliseconds(admission.vision_seconds)

    def _note_finish(self, index: int, finish: AnswerFinish) -> None:
        self.finishes[index] = finish
        self._record.metrics.answer(finish)
        ends_by_itself = finish.reason in _ENDS_BY_ITSELF
        if ends_by_itself and len(self.finishes) == self._conversation.num_answers:
            self._record.enter("sending")
        if index == 0:
            self._record.stages.decode = milliseconds(finish.decode_seconds)
            self._record.facts["finish_reason"] = str(finish.reason)

    def _spent(self) -> Spent:
        usage = self.usage
        return Spent(usage.num_prompt_tokens, usage.num_output_tokens)

    def _note_facts(self) -> None:
        usage, facts = self.usage, self._record.facts
        facts["text_tokens"] = usage.num_text_tokens
        facts["image_tokens"] = usage.num_image_tokens
        facts["cached_tokens"] = usage.num_cached_tokens
        facts["output_tokens"] = usage.num_output_tokens
        facts["inference_ms"] = milliseconds(self.inference_seconds)

    def _note_work(self) -> None:
        if not self._admissions:
            return  # the engine did nothing for it
        usage, record = self.usage, self._record
        for vision in self.prepared.visions:
            record.metrics.image(vision.height * vision.width)
        num_output_tokens = usage.num_output_tokens
        record.metrics.tokens(num_output_tokens - self._num_delivered)  # those that end an answer
        record.metrics.work_done(
            usage, num_output_tokens, self.inference_seconds, record.caller.name
        )


def _load_checkpoint(model: ModelFacts) -> _Checkpoint:
    prompts = PromptBuilder(model)
    bounds = read_model_bounds(model)
    return_unused_memory()
    return _Checkpoint(model, prompts, Vocabulary(prompts.tokenizer), bounds)


def _vision(sight: DecodedImage | SampledVideo) -> Vision:
    is_video = isinstance(sight, SampledVideo)
    return Vision(
        height=sight.height,
        width=sight.width,
        pixels=memoryview(sight.pixels),
        num_frames=sight.num_frames if is_video else 1,
        video=is_video,
        content_hash=sight.content_hash,
    )
