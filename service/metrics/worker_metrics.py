"""What one web worker counts of its requests, in its slab of the ledger. Knows no HTTP and no log.

All of it runs on the event loop, the one thread that writes to the slab. Whatever a client can
count itself is counted before the client can know it.
"""

import asyncio
from typing import Literal, TypeAlias, get_args

from inference.ledger import Counter, Slab, private_slab
from inference.protocol import Delta, FinishReason
from service.metrics import families as family
from service.metrics.memory import children_resident_bytes, resident_bytes
from service.metrics.settings import MetricsSettings
from service.stages import StageTimes
from service.text.answer import AnswerFinish, Usage

Stage: TypeAlias = Literal[
    "reading", "fetching", "decoding", "prompt", "queued", "prefill", "decode", "sending"
]

_STAGE_FAMILIES = {
    "image_fetch": family.IMAGE_FETCH_TIME,
    "image_decode": family.IMAGE_DECODE_TIME,
    "prompt": family.PROMPT_TIME,
    "queue": family.QUEUE_TIME,
    "vision": family.VISION_TIME,
    "prefill": family.PREFILL_TIME,
    "decode": family.DECODE_TIME,
}
_MEDIA_CODES = ("image_", "media_budget", "pdf_", "video_", "too_many_images")
_CODES_OF_ALERTS = ("engine_failed", "gpu_out_of_memory", "internal_error", "overloaded")
# The engine tells how far a cancelled request was at the end of its step, if it lives.
_LAST_WORD_SECONDS = 1.5


class WorkerMetrics:
    """The worker's counters; slab: whose they are."""

    def __init__(
        self,
        slab: Slab | None = None,
        settings: MetricsSettings = MetricsSettings(),  # noqa: B008 - frozen
        process: str = "worker",
    ) -> None:
        """Count in a slab, or for this object alone. process: what memory is shown under."""
        self.slab = slab = slab or private_slab()
        self._by_key = settings.metrics_by_key
        self._first_token = slab.histogram(family.TIME_TO_FIRST_TOKEN)
        self._between_tokens = slab.histogram(family.INTER_TOKEN_LATENCY)
        self._end_to_end = slab.histogram(family.E2E_LATENCY)
        self._inference = slab.histogram(family.INFERENCE_TIME)
        self._stages = {
            name: slab.histogram(declared) for name, declared in _STAGE_FAMILIES.items()
        }
        self._prompt_tokens = slab.counter(family.PROMPT_TOKENS)
        self._cached_tokens = slab.counter(family.CACHED_TOKENS)
        self._image_tokens = slab.counter(family.IMAGE_TOKENS)
        self._output_tokens = slab.counter(family.OUTPUT_TOKENS)
        self._request_prompt_tokens = slab.histogram(family.REQUEST_PROMPT_TOKENS)
        self._request_output_tokens = slab.histogram(family.REQUEST_OUTPUT_TOKENS)
        self._images = slab.counter(family.IMAGES)
        self._image_pixels = slab.histogram(family.IMAGE_PIXELS)
        self._replays = slab.counter(family.REPLAYS)
        self._in_flight = slab.gauge(family.IN_FLIGHT)
        self._open_streams = slab.gauge(family.OPEN_STREAMS)
        self._rss = slab.gauge(family.WORKER_RSS, process)
        self._decoders_rss = slab.gauge(family.DECODERS_RSS, process)
        self._departed: dict[str, family.Family] = {}
        self._begin_at_zero()

    def request_begins(self) -> None:
        """Count a request that has arrived."""
        self._in_flight.add()

    def request_ends(self) -> None:
        """Count a request as done with, however that came."""
        self._in_flight.add(-1)

    def stream_begins(self) -> None:
        """Count an open event stream."""
        self._open_streams.add()

    def stream_ends(self) -> None:
        """Count an event stream as closed."""
        self._open_streams.add(-1)

    def response(self, route: str, status: int, key: str) -> None:
        """Count a response. route: its template. key: the name of the caller's API key."""
        self.slab.counter(family.REQUESTS, route, str(status)).add()
        if self._by_key and key:
            self.slab.counter(family.KEY_REQUESTS, key, str(status)).add()

    def refused(self, error_code: str) -> None:
        """Count a request that ended with an error."""
        self.slab.counter(family.REFUSED, error_code).add()
        if error_code.startswith(_MEDIA_CODES):
            self.slab.counter(family.IMAGES_REFUSED, error_code).add()

    def answered(self, seconds: float) -> None:
        """Note how long a request took that was answered."""
        self._end_to_end.observe(seconds)

    def image(self, num_pixels: int) -> None:
        """Count a picture that goes to the engine."""
        self._images.add()
        self._image_pixels.observe(num_pixels)

    def first_token(self, seconds: float) -> None:
        """Note when a request's first token came, since its arrival."""
        self._first_token.observe(seconds)

    def tokens(self, count: int) -> None:
        """Count tokens of an answer."""
        self._output_tokens.add(count)

    def between_tokens(self, seconds: float, count: int) -> None:
        """Note that so many tokens came so long after the one before them."""
        self._between_tokens.observe(seconds / count, count)

    def answer(self, finish: AnswerFinish) -> None:
        """Count an answer that has ended."""
        self.slab.counter(family.ANSWERS, finish.reason).add()

    def work_done(
        self, usage: Usage, num_output_tokens: int, inference_seconds: float, key: str
    ) -> None:
        """Count what a request took that had a first token; its output was counted as it came."""
        self._prompt_tokens.add(usage.num_prompt_tokens)
        self._cached_tokens.add(usage.num_cached_tokens)
        self._image_tokens.add(usage.num_image_tokens)
        self._request_prompt_tokens.observe(usage.num_prompt_tokens)
        self._request_output_tokens.observe(num_output_tokens)
        self._inference.observe(inference_seconds)
        if self._by_key and key:
            self.slab.counter(family.KEY_PROMPT_TOKENS, key).add(usage.num_prompt_tokens)
            self.slab.counter(family.KEY_OUTPUT_TOKENS, key).add(num_output_tokens)

    def stages(self, stages: StageTimes) -> None:
        """Note the time of every stage that took place."""
        for name, histogram in self._stages.items():
            milliseconds = getattr(stages, name)
            if milliseconds is not None:
                histogram.observe(milliseconds / 1e3)

    def replayed(self) -> None:
        """Count a request that is sent to another engine."""
        self._replays.add()

    def client_left(self, stage: Stage, engine_id: str | None) -> None:
        """Count a client that left. engine_id: what the engine calls the request, if it has it."""
        self._cut_short(family.DISCONNECTS, stage, engine_id)

    def deadline_missed(self, stage: Stage, engine_id: str | None) -> None:
        """Count a request whose time ran out."""
        self._cut_short(family.DEADLINES_MISSED, stage, engine_id)

    def heard_late(self, delta: Delta) -> None:
        """Learn from the engine's last word on a request, after its end here, how far it was."""
        declared = self._departed.pop(delta.request_id, None)
        if declared is not None:
            stage: Stage = "queued" if delta.admission is None else "prefill"
            self._at_stage(declared, stage).add()

    def note_memory(self) -> None:
        """Say how much memory this worker and its decoders hold."""
        self._rss.set(resident_bytes())
        self._decoders_rss.set(children_resident_bytes())

    def _begin_at_zero(self) -> None:
        """Show what alerts look at from the start: a series that begins at 1 has no first rise."""
        for stage in get_args(Stage):
            self._at_stage(family.DISCONNECTS, stage)
            self._at_stage(family.DEADLINES_MISSED, stage)
        for reason in FinishReason:
            self.slab.counter(family.ANSWERS, reason)
        for code in _CODES_OF_ALERTS:
            self.slab.counter(family.REFUSED, code)

    def _cut_short(self, declared: family.Family, stage: Stage, engine_id: str | None) -> None:
        if stage != "queued" or engine_id is None:
            self._at_stage(declared, stage).add()
            return
        # From here, waiting in the engine and computing the prompt look the same.
        self._departed[engine_id] = declared
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST_WORD_SECONDS, self._give_up_hearing, engine_id)

    def _give_up_hearing(self, engine_id: str) -> None:
        declared = self._departed.pop(engine_id, None)
        if declared is not None:
            self._at_stage(declared, "queued").add()

    def _at_stage(self, declared: family.Family, stage: Stage) -> Counter:
        return self.slab.counter(declared, stage)
