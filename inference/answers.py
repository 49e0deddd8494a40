"""The answers as they grow: what each new token does to its sequence, and what its owner is told.

Every sequence that began to be answered ends with exactly one `Delta` that has `finish`, or with
its whole request by one `Refused`.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from inference.protocol import (
    Admission,
    Delta,
    Finish,
    FinishReason,
    Isolated,
    RefusalCode,
    Refused,
    TokenLogprob,
)
from inference.repetition import RepetitionGuard
from inference.sampler import SamplerState
from inference.scheduler import Scheduler
from inference.sequence import Owner, Request, Sequence, SequenceState

Output: TypeAlias = tuple[Owner, Delta | Refused | Isolated]


class _Progress(NamedTuple):
    """What choosing and ending a sequence's tokens needs beside the sequence itself."""

    sampler: SamplerState
    guard: RepetitionGuard | None


class Answers:
    """Growing sequences and what waits to be handed out.

    ended: told of every sequence right after its end. num_output_tokens: since the start.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        clock: Callable[[], float],
        ended: Callable[[Sequence], None],
    ) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._ended = ended
        self._progress: dict[Sequence, _Progress] = {}
        self._outputs: list[Output] = []
        self.num_output_tokens = 0

    @property
    def is_empty(self) -> bool:
        """Nothing waits to be handed out."""
        return not self._outputs

    def collect(self) -> list[Output]:
        """Hand out everything there is to say since the last time."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def tell(self, owner: Owner, message: Refused | Isolated) -> None:
        """Say something that is no token."""
        self._outputs.append((owner, message))

    def begin(self, sequence: Sequence, sampler: SamplerState) -> None:
        """Expect tokens for a sequence, and queue it for them."""
        guards = sequence.request.sampling.repetition_guard
        guard = RepetitionGuard(sequence.output_token_ids) if guards else None
        self._progress[sequence] = _Progress(sampler, guard)
        self._scheduler.add(sequence)

    def sampler(self, sequence: Sequence) -> SamplerState:
        """How a sequence's tokens are chosen."""
        return self._progress[sequence].sampler

    def append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> None:
        """Take in a sequence's next token, and end it where that is due."""
        progress = self._progress[sequence]
        progress.sampler.accept(token_id)
        sequence.output_token_ids.append(token_id)
        self.num_output_tokens += 1
        logprobs = [] if logprob is None else [logprob]
        if progress.sampler.error is not None:
            self.give_up(sequence.request, progress.sampler.error)
        elif token_id in progress.sampler.end_token_ids:
            self._finish(sequence, [], [], FinishReason.STOP)
        elif progress.sampler.is_complete:
            self._finish(sequence, [token_id], logprobs, FinishReason.STOP)
        elif detail := _length_detail(sequence, progress, token_id):
            self._finish(sequence, [token_id], logprobs, FinishReason.LENGTH, detail)
        else:
            self._deliver(sequence, [token_id], logprobs, None)

    def end(self, request: Request, reason: FinishReason) -> None:
        """End all of a request's live sequences, each with its own last message."""
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._finish(sequence, [], [], reason)

    def give_up(
        self, request: Request, code: RefusalCode, retry_after_seconds: float | None = None
    ) -> None:
        """End all of a request's live sequences with one refusal."""
        refused = Refused(
            request_id=request.request_id, code=code, retry_after_seconds=retry_after_seconds
        )
        self.tell(request.owner, refused)
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._close(sequence, self._describe_end(sequence, FinishReason.CANCELLED, code))
                self._ended(sequence)

    def _finish(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprob],
        reason: FinishReason,
        detail: str = "",
    ) -> None:
        finish = self._describe_end(sequence, reason, detail)
        self._close(sequence, finish)
        self._deliver(sequence, token_ids, logprobs, finish)
        self._ended(sequence)

    def _close(self, sequence: Sequence, finish: Finish) -> None:
        if self._progress.pop(sequence, None) is None:
            sequence.end(finish)  # it was never queued
        else:
            self._scheduler.finish(sequence, finish)

    def _describe_end(self, sequence: Sequence, reason: FinishReason, detail: str) -> Finish:
        started = sequence.first_delta_time
        return Finish(
            reason=reason,
            detail=detail,
            num_output_tokens=len(sequence.output_token_ids),
            decode_seconds=0.0 if started is None else self._clock() - started,
        )

    def _deliver(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprob],
        finish: Finish | None,
    ) -> None:
        admission = None
        if sequence.first_delta_time is None:
            sequence.first_delta_time = self._clock()
            admission = _describe_start(sequence, sequence.first_delta_time)
        delta = Delta(
            request_id=sequence.request.request_id,
            index=sequence.index,
            token_ids=token_ids,
            logprobs=logprobs,
            admission=admission,
            finish=finish,
        )
        self._outputs.append((sequence.request.owner, delta))


def _length_detail(sequence: Sequence, progress: _Progress, token_id: int) -> str:
    looping = progress.guard is not None and progress.guard.accept(token_id)
    if len(sequence.output_token_ids) >= sequence.request.sampling.max_tokens:
        return "max_tokens"
    return "repetition" if looping else ""


def _describe_start(sequence: Sequence, now: float) -> Admission | None:
    if sequence.admitted_time is None:
        return None
    return Admission(
        num_cached_tokens=sequence.num_cached_tokens,
        queue_seconds=sequence.admitted_time - sequence.request.arrival_time,
        vision_seconds=sequence.vision_seconds,
        prefill_seconds=max(now - sequence.admitted_time - sequence.vision_seconds, 0.0),
    )
