"""The engine: requests in, tokens out, one `step` at a time. Usable as a library in one process.

    engine = build_engine(EngineConfig(model="demo"))
    engine.add(Owner(0), Generate(request_id="a", prompt_token_ids=[...], sampling=...))
    while engine.has_work:
        for owner, message in engine.step():
            ...

It knows no connections: an owner is whoever wants the answers. Every request that is added gets
exactly one terminal message per sequence (a `Delta` with `finish`) or one `Refused` for all.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import structlog

from inference.device import resident_bytes
from inference.grammar import CompiledGrammar, GrammarCompiler, GrammarRefusedError
from inference.protocol import (
    Admission,
    Delta,
    Finish,
    FinishReason,
    Generate,
    Limits,
    ModelFacts,
    RefusalCode,
    Refused,
    Stats,
    TokenLogprob,
)
from inference.repetition import RepetitionGuard
from inference.runner import Runner, is_out_of_memory
from inference.sampler import Sampler, SamplerState
from inference.scheduler import Scheduler, Step
from inference.sequence import Owner, Request, Sequence, SequenceState
from inference.spans import PromptInvalid, VisualLayout, locate_spans

if TYPE_CHECKING:
    from concurrent.futures import Future

Output: TypeAlias = tuple[Owner, Delta | Refused]

# One priority class ahead is worth this head start: classes order requests without starving any.
SECONDS_PER_PRIORITY = 10.0

_log = structlog.get_logger()


class _Progress(NamedTuple):
    """What choosing and ending a sequence's tokens needs beside the sequence itself."""

    sampler: SamplerState
    guard: RepetitionGuard | None


class Engine:
    """Owns scheduler, runner and sampler, and the requests between them."""

    def __init__(
        self,
        model: ModelFacts,
        limits: Limits,
        scheduler: Scheduler,
        runner: Runner,
        grammars: GrammarCompiler,
        *,
        is_memory_short: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Join the parts; `build_engine` makes them from a configuration."""
        self.model = model
        self.limits = limits
        self.scheduler = scheduler
        self.runner = runner
        self._grammars = grammars
        self._is_memory_short = is_memory_short
        self._clock = clock
        self._layout = VisualLayout.of(model)
        self._sampler = Sampler()
        self._requests: dict[tuple[Owner, str], Request] = {}
        self._compiling: list[tuple[Future[CompiledGrammar], Request]] = []
        self._progress: dict[Sequence, _Progress] = {}
        self._outputs: list[Output] = []
        self._finish_times: deque[float] = deque(maxlen=32)
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    @property
    def has_work(self) -> bool:
        """A call of `step` would do or deliver something, now or once a grammar is compiled."""
        return bool(self._requests or self._outputs)

    @property
    def has_outputs(self) -> bool:
        """Something waits to be handed out."""
        return bool(self._outputs)

    def add(self, owner: Owner, generate: Generate) -> None:
        """Take a request, or refuse it: either way the answer comes out of `step`."""
        if (owner, generate.request_id) in self._requests:
            self._refuse(owner, generate.request_id, RefusalCode.DUPLICATE_REQUEST_ID)
            return
        refused = self._check_capacity(generate) or self._check_length(generate)
        if refused is not None:
            self._outputs.append((owner, refused))
            return
        try:
            self._check_tokens(generate)
            spans = locate_spans(generate.prompt_token_ids, generate.visions, self._layout)
        except PromptInvalid:
            self._refuse(owner, generate.request_id, RefusalCode.INPUT_INVALID)
            return
        now = self._clock()
        request = Request(
            owner=owner,
            request_id=generate.request_id,
            prompt_token_ids=generate.prompt_token_ids,
            sampling=generate.sampling,
            visions=generate.visions,
            spans=spans,
            tenant=generate.tenant,
            rank=now + generate.priority * SECONDS_PER_PRIORITY,
            arrival_time=now,
        )
        indices = generate.sequence_indices or range(generate.num_sequences)
        prefixes = generate.output_prefixes or [[]] * generate.num_sequences
        request.sequences = [
            Sequence(request, index, self.limits.block_size, list(prefix))
            for index, prefix in zip(indices, prefixes, strict=True)
        ]
        self._requests[owner, generate.request_id] = request
        self._num_prompt_tokens += len(request.prompt_token_ids)
        if generate.sampling.grammar is not None:
            self._compiling.append((self._grammars.compile(generate.sampling.grammar), request))
        else:
            self._enqueue(request, None)

    def cancel(self, owner: Owner, request_id: str) -> None:
        """End a request's sequences now; ids that are unknown or done are ignored."""
        request = self._requests.get((owner, request_id))
        if request is None:
            return
        self._compiling = [(o, r) for o, r in self._compiling if r is not request]
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self._finish(sequence, [], [], FinishReason.CANCELLED)

    def cancel_all(self, owner: Owner) -> None:
        """The owner is gone: cancel every request of it."""
        for known_owner, request_id in list(self._requests):
            if known_owner == owner:
                self.cancel(owner, request_id)

    def step(self) -> list[Output]:
        """Do one step's work and hand out everything there is to say since the last one."""
        self._enqueue_compiled()
        step = self.scheduler.schedule()
        if step.chunks:
            self._stamp_admissions(step)
            self._run(step)
            self._num_steps += 1
        outputs, self._outputs = self._outputs, []
        return outputs

    def close(self) -> None:
        """End the helper processes; the engine is not used afterwards."""
        self._grammars.close()

    def stats(self) -> Stats:
        """The figures of now and the counters since the start."""
        scheduler = self.scheduler
        return Stats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(self._compiling),
            num_free_blocks=scheduler.blocks.num_free,
            gpu_memory_used_bytes=self.runner.memory_used_bytes(),
            resident_memory_bytes=resident_bytes(),
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._num_output_tokens,
            num_preemptions=scheduler.num_preemptions,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            embedding_cache_queries=scheduler.embedding_cache_queries,
            embedding_cache_hits=scheduler.embedding_cache_hits,
        )

    def _check_capacity(self, generate: Generate) -> Refused | None:
        num_waiting = len(self.scheduler.waiting) + len(self._compiling)
        num_free_rows = self.limits.max_num_seqs - len(self.scheduler.running)
        has_room = num_waiting < num_free_rows + self.limits.max_queued_requests
        if has_room and not self._is_memory_short():
            return None
        return Refused(
            request_id=generate.request_id,
            code=RefusalCode.OVERLOADED,
            retry_after_seconds=self._expected_wait(num_waiting),
        )

    def _expected_wait(self, num_waiting: int) -> float:
        """Seconds until the queue has moved on, at the rate of the last finished requests."""
        if len(self._finish_times) < 2:
            return 1.0
        span = self._clock() - self._finish_times[0]
        return min(max(num_waiting * span / len(self._finish_times), 1.0), 60.0)

    def _check_length(self, generate: Generate) -> Refused | None:
        """Every request must fit the context, and the pool when it is alone there."""
        prompt = len(generate.prompt_token_ids)
        needed = prompt + max(
            [generate.sampling.max_tokens, *(len(prefix) for prefix in generate.output_prefixes)]
        )
        allowed = min(
            self.model.max_model_len,
            self.scheduler.blocks.num_usable * self.limits.block_size,
        )
        if needed <= allowed:
            return None
        return Refused(
            request_id=generate.request_id,
            code=RefusalCode.CONTEXT_LENGTH_EXCEEDED,
            needed=needed,
            allowed=allowed,
        )

    def _check_tokens(self, generate: Generate) -> None:
        prefixes, indices = generate.output_prefixes, generate.sequence_indices
        if not generate.prompt_token_ids or generate.sampling.max_tokens < 1:
            raise PromptInvalid("nothing to do")
        if not 1 <= generate.num_sequences <= self.limits.max_num_seqs:
            raise PromptInvalid("more sequences than can run together, or none")
        if len(prefixes) not in (0, generate.num_sequences):
            raise PromptInvalid("prefixes and sequences differ in number")
        if len(indices) not in (0, generate.num_sequences) or len(set(indices)) < len(indices):
            raise PromptInvalid("the sequences' indices do not tell them apart")
        if min(indices, default=0) < 0:
            raise PromptInvalid("a sequence's index is negative")
        if any(len(prefix) >= generate.sampling.max_tokens for prefix in prefixes):
            raise PromptInvalid("a prefix leaves nothing to generate")
        for token_ids in (generate.prompt_token_ids, *prefixes):
            if token_ids and not 0 <= min(token_ids) <= max(token_ids) < self.model.vocab_size:
                raise PromptInvalid("a token id is outside the vocabulary")

    def _refuse(self, owner: Owner, request_id: str, code: RefusalCode) -> None:
        self._outputs.append((owner, Refused(request_id=request_id, code=code)))

    def _enqueue_compiled(self) -> None:
        still: list[tuple[Future[CompiledGrammar], Request]] = []
        for outcome, request in self._compiling:
            if not outcome.done():
                still.append((outcome, request))
                continue
            try:
                self._enqueue(request, outcome.result())
            except GrammarRefusedError as error:
                self._give_up(request, error.code)
        self._compiling = still

    def _enqueue(self, request: Request, grammar: CompiledGrammar | None) -> None:
        for sequence in request.sequences:
            sampler = SamplerState(
                request.sampling,
                prompt_token_ids=request.prompt_token_ids,
                output_token_ids=sequence.output_token_ids,
                index=sequence.index,
                eos_token_ids=self.model.eos_token_ids,
                vocab_size=self.model.vocab_size,
                matcher=grammar and grammar.matcher(sequence.output_token_ids),
            )
            guard = (
                RepetitionGuard(sequence.output_token_ids)
                if (request.sampling.repetition_guard)
                else None
            )
            self._progress[sequence] = _Progress(sampler, guard)
            self.scheduler.add(sequence)

    def _stamp_admissions(self, step: Step) -> None:
        now = self._clock()
        for chunk in step.prefills:
            if chunk.sequence.admitted_time is None:
                chunk.sequence.admitted_time = now

    def _run(self, step: Step) -> None:
        """Execute a step; what does not fit the device's memory is tried again in smaller parts."""
        try:
            self._execute(step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.runner.release_memory()
            if len(step.chunks) == 1:
                _log.warning("request ran out of memory", request_id=_request_id(step))
                self._give_up(step.chunks[0].sequence.request, RefusalCode.OUT_OF_MEMORY)
                return
            for part in _parts(step):
                if all(c.sequence.state is not SequenceState.FINISHED for c in part.chunks):
                    self._run(part)

    def _execute(self, step: Step) -> None:
        self._encode(step)
        # Rows of one token first and by length: neighbours then pad each other little.
        chunks = sorted(step.chunks, key=lambda chunk: (chunk.num_tokens > 1, chunk.end))
        logits = self.runner.execute(chunks)
        completing = [chunk.sequence for chunk in chunks if chunk.completes]
        states = [self._progress[sequence].sampler for sequence in completing]
        sampled = self._sampler.sample(logits, states) if states else None
        # Nothing has changed so far, so that a step which ran out of memory can run again.
        for chunk in chunks:
            self.scheduler.advance(chunk)
        if sampled is not None:
            for sequence, token_id, logprob in zip(
                completing, sampled.token_ids, sampled.logprobs, strict=True
            ):
                # A sibling's failure may have ended this one within the same step.
                if sequence.state is not SequenceState.FINISHED:
                    self._append(sequence, token_id, logprob)

    def _encode(self, step: Step) -> None:
        embeddings = self.scheduler.embeddings
        # A step that runs again in parts may have encoded some already.
        missing = [e for e in step.encodings if not embeddings.is_stored(e.key)]
        if not missing:
            return
        started = self._clock()
        self.runner.encode(missing)
        seconds = self._clock() - started
        requests = {encoding.request for encoding in missing}
        for chunk in step.prefills:
            if chunk.sequence.request in requests:
                chunk.sequence.vision_seconds += seconds

    def _append(self, sequence: Sequence, token_id: int, logprob: TokenLogprob | None) -> None:
        progress = self._progress[sequence]
        progress.sampler.accept(token_id)
        sequence.output_token_ids.append(token_id)
        self._num_output_tokens += 1
        logprobs = [] if logprob is None else [logprob]
        if progress.sampler.error is not None:
            self._give_up(sequence.request, progress.sampler.error)
        elif token_id in progress.sampler.end_token_ids:
            self._finish(sequence, [], [], FinishReason.STOP)
        elif progress.sampler.is_complete:
            self._finish(sequence, [token_id], logprobs, FinishReason.STOP)
        elif detail := self._length_detail(sequence, progress, token_id):
            self._finish(sequence, [token_id], logprobs, FinishReason.LENGTH, detail)
        else:
            self._deliver(sequence, [token_id], logprobs, None)

    def _length_detail(self, sequence: Sequence, progress: _Progress, token_id: int) -> str:
        looping = progress.guard is not None and progress.guard.accept(token_id)
        if len(sequence.output_token_ids) >= sequence.request.sampling.max_tokens:
            return "max_tokens"
        return "repetition" if looping else ""

    def _finish(
        self,
        sequence: Sequence,
        token_ids: list[int],
        logprobs: list[TokenLogprob],
        reason: FinishReason,
        detail: str = "",
    ) -> None:
        finish = self._describe_end(sequence, reason, detail)
        if sequence in self._progress:
            del self._progress[sequence]
            self.scheduler.finish(sequence, finish)
        else:
            sequence.end(finish)
        self._deliver(sequence, token_ids, logprobs, finish)
        self._settle(sequence.request)

    def _describe_end(self, sequence: Sequence, reason: FinishReason, detail: str) -> Finish:
        started = sequence.first_delta_time
        return Finish(
            reason=reason,
            detail=detail,
            num_output_tokens=len(sequence.output_token_ids),
            decode_seconds=0.0 if started is None else self._clock() - started,
        )

    def _give_up(self, request: Request, code: RefusalCode) -> None:
        """End all of a request's live sequences with one refusal."""
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                finish = self._describe_end(sequence, FinishReason.CANCELLED, code)
                if self._progress.pop(sequence, None) is None:
                    sequence.end(finish)
                else:
                    self.scheduler.finish(sequence, finish)
        self._refuse(request.owner, request.request_id, code)
        self._settle(request)

    def _settle(self, request: Request) -> None:
        if request.is_finished:
            del self._requests[request.owner, request.request_id]
            self.runner.forget(request)
            self._finish_times.append(self._clock())

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


def _describe_start(sequence: Sequence, now: float) -> Admission | None:
    if sequence.admitted_time is None:
        return None
    return Admission(
        num_cached_tokens=sequence.num_cached_tokens,
        queue_seconds=sequence.admitted_time - sequence.request.arrival_time,
        vision_seconds=sequence.vision_seconds,
        prefill_seconds=max(now - sequence.admitted_time - sequence.vision_seconds, 0.0),
    )


def _parts(step: Step) -> list[Step]:
    """The same work in smaller pieces: first the decodes, then each prefill with its pictures."""
    if step.decodes and step.prefills:
        parts = [Step(decodes=step.decodes)]
    else:
        parts = [Step(decodes=[chunk]) for chunk in step.decodes]
    for chunk in step.prefills:
        request = chunk.sequence.request
        # Two chunks may need one picture: whichever runs first encodes it.
        keys = {
            (request.tenant, request.visions[span.vision].content_hash)
            for span in request.spans
            if span.start < chunk.end and span.end > chunk.start
        }
        needed = [encoding for encoding in step.encodings if encoding.key in keys]
        parts.append(Step(prefills=[chunk], encodings=needed))
    return parts


def _request_id(step: Step) -> str:
    return step.chunks[0].sequence.request.request_id
