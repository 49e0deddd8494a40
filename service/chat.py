"""From a canonical request to what the engine gets: media, prompt, tokens. Knows no dialect."""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol
from uuid import uuid4

import anyio
import anyio.to_thread
import structlog

from inference.protocol import Limits, ModelFacts, Stats, Vision
from service.conversation import Conversation, MediaPart
from service.engine.verdicts import Verdicts
from service.errors import ClientError, EngineUnavailable
from service.media.decoded_image import DecodedImage
from service.media.intake import MediaIntake
from service.media.medium import Medium, sights_of
from service.media.model_bounds import ModelBounds, read_model_bounds
from service.media.sampled_video import SampledVideo
from service.processes.heap import freeze_objects, return_unused_memory
from service.request_log import RequestRecord
from service.stages import milliseconds
from service.text.answer import Engine
from service.text.detokenizer import Vocabulary
from service.text.prompt import Prompt, PromptBuilder

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

    def knows(self, request_id: str) -> bool:
        """Whether an id is a request's that has not ended, or not quite."""
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
    """Makes conversations ready for the engine; one per worker.

    engine: shown to health and metrics as well.
    """

    def __init__(self, engine: ConnectedEngine, intake: MediaIntake) -> None:
        self.engine = engine
        self.verdicts = Verdicts()
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
        if request_id in self._ids_in_flight or self.engine.knows(request_id):
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


def _load_checkpoint(model: ModelFacts) -> _Checkpoint:
    prompts = PromptBuilder(model)
    bounds = read_model_bounds(model)
    checkpoint = _Checkpoint(model, prompts, Vocabulary(prompts.tokenizer), bounds)
    return_unused_memory()
    freeze_objects()
    return checkpoint


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
