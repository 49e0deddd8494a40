"""The account of one request: what it took, for its reply, its log line and the metrics."""

import time

from inference.protocol import Admission, FinishReason
from service.chat import Prepared
from service.conversation import Conversation
from service.errors import Spent
from service.request_log import RequestRecord
from service.stages import milliseconds
from service.text.answer import AnswerDelta, AnswerFinish, Usage, count_usage

_ENDS_BY_ITSELF = (FinishReason.STOP, FinishReason.LENGTH)


class Account:
    """Kept while the answers come, from handing the prepared request to the engine on.

    finishes: of the answers that have ended, by their index. inference_seconds: until the last
    token; known once the account is closed.
    """

    def __init__(
        self, conversation: Conversation, prepared: Prepared, record: RequestRecord
    ) -> None:
        self._conversation = conversation
        self._prepared = prepared
        self._record = record
        self._started_at = time.perf_counter()
        self._admissions: dict[int, Admission] = {}
        self._num_delivered = 0
        self._token_times: dict[int, float] = {}
        self.finishes: dict[int, AnswerFinish] = {}
        self.inference_seconds = 0.0

    @property
    def usage(self) -> Usage:
        """Count the tokens so far; answers that did not end were work all the same."""
        usage = count_usage(
            self._prepared.prompt, self._admissions.values(), self.finishes.values()
        )
        num_output_tokens = max(usage.num_output_tokens, self._num_delivered)
        return usage._replace(num_output_tokens=num_output_tokens)

    @property
    def spent(self) -> Spent:
        """Sum up what an answer that fails is told to have cost."""
        usage = self.usage
        return Spent(usage.num_prompt_tokens, usage.num_output_tokens)

    def note(self, delta: AnswerDelta) -> None:
        """Enter what came."""
        if "first_token_ms" not in self._record.facts:
            self._note_first(delta)
        self._note_tokens(delta)
        if delta.admission is not None:
            self._note_admission(delta.index, delta.admission)
        if delta.finish is not None:
            self._note_finish(delta.index, delta.finish)

    def close(self) -> None:
        """Enter the sums: no more will come."""
        self.inference_seconds = time.perf_counter() - self._started_at
        usage, facts = self.usage, self._record.facts
        facts["text_tokens"] = usage.num_text_tokens
        facts["image_tokens"] = usage.num_image_tokens
        facts["cached_tokens"] = usage.num_cached_tokens
        facts["output_tokens"] = usage.num_output_tokens
        facts["inference_ms"] = milliseconds(self.inference_seconds)
        if self._admissions:  # or the engine did nothing for it
            self._count_work(usage)

    def _note_first(self, delta: AnswerDelta) -> None:
        record, now = self._record, time.perf_counter()
        record.facts["first_token_ms"] = milliseconds(now - self._started_at)
        if delta.finish is None or delta.finish.reason in _ENDS_BY_ITSELF:
            record.enter("decode")
            record.metrics.first_token(now - record.started_at)
        elif delta.admission is not None:
            record.enter("prefill")

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

    def _count_work(self, usage: Usage) -> None:
        metrics = self._record.metrics
        for vision in self._prepared.visions:
            metrics.image(vision.height * vision.width)
        metrics.tokens(usage.num_output_tokens - self._num_delivered)  # those that end an answer
        metrics.work_done(
            usage, usage.num_output_tokens, self.inference_seconds, self._record.caller.name
        )
