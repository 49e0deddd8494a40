"""The engine: requests in, tokens out, one `step` at a time. Usable as a library in one process.

    engine = build_engine(EngineConfig(model="demo"))
    engine.add(Owner(0), Generate(request_id="a", prompt_token_ids=[...], sampling=...))
    while engine.has_work:
        for owner, message in engine.step():
            ...

It knows no connections: an owner is whoever wants the answers. Every request that is added gets
exactly one terminal message per sequence (a `Delta` with `finish`) or one `Refused` for all.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from inference.answers import Answers, Output
from inference.backlog import Ticket
from inference.device import resident_bytes
from inference.gate import Gate
from inference.grammar import CompiledGrammar, GrammarCompiler, GrammarRefusedError
from inference.intake import make_request
from inference.isolation import Isolation
from inference.protocol import (
    FinishReason,
    Generate,
    Isolated,
    Limits,
    ModelFacts,
    RefusalCode,
    Refused,
    Stats,
)
from inference.runner import Runner, is_out_of_memory
from inference.sampler import Sampler, SamplerState
from inference.scheduler import Scheduler
from inference.sequence import Owner, Request, Sequence, SequenceState
from inference.spans import VisualLayout, num_patches
from inference.step import Step

if TYPE_CHECKING:
    from concurrent.futures import Future

_SAYS_HOW_LONG = (FinishReason.STOP, FinishReason.LENGTH, FinishReason.DEADLINE)

_log = structlog.get_logger()


class Engine:
    """Owns scheduler, runner and sampler, and the requests between them.

    gate: who may add; the only part that other threads may call. last_step: what `step` ran.
    """

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
        self._clock = clock
        self._layout = VisualLayout.of(model)
        self.gate = Gate(limits, self._layout, is_memory_short=is_memory_short, clock=clock)
        self._sampler = Sampler()
        self._answers = Answers(scheduler, clock, self._note_end)
        self._isolation = Isolation()
        self._requests: dict[tuple[Owner, str], Request] = {}
        self._tickets: dict[Request, Ticket] = {}
        self._grammar_of: dict[Request, CompiledGrammar] = {}
        self._compiling: list[tuple[Future[CompiledGrammar], Request]] = []
        self._next_deadline = math.inf
        self._encode_seconds = 0.0
        self.last_step: Step | None = None
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._num_deadlines_exceeded = 0

    @property
    def has_work(self) -> bool:
        """A call of `step` would do or deliver something, now or once a grammar is compiled."""
        return bool(self._requests) or self.has_outputs

    @property
    def has_outputs(self) -> bool:
        """Something waits to be handed out."""
        return not self._answers.is_empty

    def add(self, owner: Owner, generate: Generate) -> None:
        """Take a request, or refuse it: either way the answer comes out of `step`."""
        admitted = self.gate.admit(generate)
        if isinstance(admitted, Refused):
            self._answers.tell(owner, admitted)
        else:
            self.take(owner, admitted)

    def take(self, owner: Owner, ticket: Ticket) -> None:
        """Take a request that the gate let in; the answer comes out of `step`."""
        request_id = ticket.generate.request_id
        if (owner, request_id) in self._requests:
            request = Refused(request_id=request_id, code=RefusalCode.DUPLICATE_REQUEST_ID)
        else:
            request = make_request(owner, ticket, self.model, self.limits)
        if isinstance(request, Refused):
            self.gate.end(ticket, ticket.num_open)
            self._answers.tell(owner, request)
            return
        self._requests[owner, request_id] = request
        self._tickets[request] = ticket
        self._next_deadline = min(self._next_deadline, request.deadline)
        self._num_prompt_tokens += len(request.prompt_token_ids)
        if request.sampling.grammar is not None:
            self._compiling.append((self._grammars.compile(request.sampling.grammar), request))
        else:
            self._enqueue(request)

    def cancel(self, owner: Owner, request_id: str) -> None:
        """End a request's sequences now; ids that are unknown or done are ignored."""
        request = self._requests.get((owner, request_id))
        if request is not None:
            self._answers.end(request, FinishReason.CANCELLED)

    def cancel_all(self, owner: Owner) -> None:
        """The owner is gone: cancel every request of it."""
        for known_owner, request_id in list(self._requests):
            if known_owner == owner:
                self.cancel(owner, request_id)

    def step(self) -> list[Output]:
        """Do one step's work and hand out everything there is to say since the last one.

        A step that isolates a suspect says so and does nothing else: whoever waits for the suspect
        must know before it runs.
        """
        self._enqueue_compiled()
        self._end_overdue()
        self._give_up_displaced()
        self.last_step = None
        if not self._isolate():
            step = self.scheduler.schedule(self._clock())
            if step.chunks:
                self.last_step = step
                self._note_beginnings(step)
                self._run_timed(step)
                self._num_steps += 1
        return self._answers.collect()

    def close(self) -> None:
        """End the helper processes; the engine is not used afterwards."""
        self._grammars.close()

    def stats(self) -> Stats:
        """The figures of now and the counters since the start."""
        scheduler, gate = self.scheduler, self.gate.figures()
        refused = gate.num_refused
        return Stats(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(self._compiling) + len(self._isolation),
            num_queued_tokens=gate.queued.num_tokens,
            num_queued_patches=gate.queued.num_patches,
            predicted_wait_seconds=gate.predicted_wait_seconds,
            num_free_blocks=scheduler.blocks.num_free,
            gpu_memory_used_bytes=self.runner.memory_used_bytes(),
            resident_memory_bytes=resident_bytes(),
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            num_output_tokens=self._answers.num_output_tokens,
            num_preemptions=scheduler.num_preemptions,
            prefix_cache_queries=scheduler.prefix_cache_queries,
            prefix_cache_hits=scheduler.prefix_cache_hits,
            embedding_cache_queries=scheduler.embedding_cache_queries,
            embedding_cache_hits=scheduler.embedding_cache_hits,
            num_overloaded=refused.get(RefusalCode.OVERLOADED, 0),
            num_rate_limited=refused.get(RefusalCode.RATE_LIMITED, 0),
            num_deadlines_unreachable=refused.get(RefusalCode.DEADLINE_UNREACHABLE, 0),
            num_deadlines_exceeded=self._num_deadlines_exceeded,
        )

    def _enqueue_compiled(self) -> None:
        still: list[tuple[Future[CompiledGrammar], Request]] = []
        for outcome, request in self._compiling:
            if not outcome.done():
                still.append((outcome, request))
                continue
            try:
                self._grammar_of[request] = outcome.result()
                self._enqueue(request)
            except GrammarRefusedError as error:
                self._answers.give_up(request, error.code)
        self._compiling = still

    def _enqueue(self, request: Request) -> None:
        if request.is_suspect:
            self._isolation.add(request, self._clock())
        else:
            self._begin(request)

    def _begin(self, request: Request) -> None:
        grammar = self._grammar_of.get(request)
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
            self._answers.begin(sequence, sampler)

    def _end_overdue(self) -> None:
        now = self._clock()
        if now < self._next_deadline:
            return
        overdue = [request for request in self._requests.values() if request.deadline <= now]
        for request in overdue:
            self._answers.end(request, FinishReason.DEADLINE)
            self._num_deadlines_exceeded += 1
        deadlines = (request.deadline for request in self._requests.values())
        self._next_deadline = min(deadlines, default=math.inf)

    def _give_up_displaced(self) -> None:
        if not self.gate.num_displaced:
            return
        displaced = [r for r, ticket in self._tickets.items() if ticket.is_displaced]
        wait = self.gate.figures().predicted_wait_seconds
        for request in displaced:
            self._answers.give_up(request, RefusalCode.OVERLOADED, max(wait, 1.0))

    def _isolate(self) -> bool:
        """Make way for the next suspect; tell whether one was named just now."""
        suspect = self._isolation.next(self._clock(), is_idle=not self.scheduler.running)
        if suspect is None:
            return False
        self.scheduler.pause()
        self.scheduler.only = suspect
        self._begin(suspect)
        self._answers.tell(suspect.owner, Isolated(request_id=suspect.request_id))
        return True

    def _note_beginnings(self, step: Step) -> None:
        now = self._clock()
        for chunk in step.prefills:
            if chunk.sequence.admitted_time is None:
                chunk.sequence.admitted_time = now
                self.gate.begin(self._tickets[chunk.sequence.request])

    def _run_timed(self, step: Step) -> None:
        """Execute a step, and let the gate learn how long such steps take."""
        num_running = len(self.scheduler.running)
        self._encode_seconds = 0.0
        started = self._clock()
        self._run(step)
        self.gate.learn_step(
            num_decodes=len(step.decodes),
            num_prefill_tokens=step.num_prefill_tokens,
            num_rows=num_running if self.scheduler.is_full else self.limits.max_num_seqs,
            seconds=self._clock() - started - self._encode_seconds,
        )

    def _run(self, step: Step) -> None:
        """Execute a step; what does not fit the device's memory is tried again in smaller parts."""
        try:
            self._execute(step)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self.runner.release_memory()
            if len(step.chunks) == 1:
                request = step.chunks[0].sequence.request
                _log.warning("request ran out of memory", **request.names)
                self._answers.give_up(request, RefusalCode.OUT_OF_MEMORY)
                return
            for part in step.parts():
                if all(c.sequence.state is not SequenceState.FINISHED for c in part.chunks):
                    self._run(part)

    def _execute(self, step: Step) -> None:
        self._encode(step)
        # Rows of one token first and by length: neighbours then pad each other little.
        chunks = sorted(step.chunks, key=lambda chunk: (chunk.num_tokens > 1, chunk.end))
        logits = self.runner.execute(chunks)
        completing = [chunk.sequence for chunk in chunks if chunk.completes]
        states = [self._answers.sampler(sequence) for sequence in completing]
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
                    self._answers.append(sequence, token_id, logprob)
            self.gate.charge(Counter(sequence.request.account for sequence in completing))

    def _encode(self, step: Step) -> None:
        embeddings = self.scheduler.embeddings
        # A step that runs again in parts may have encoded some already.
        missing = [e for e in step.encodings if not embeddings.is_stored(e.key)]
        if not missing:
            return
        started = self._clock()
        self.runner.encode(missing)
        seconds = self._clock() - started
        self._encode_seconds += seconds
        patches = sum(num_patches(e.request.visions[e.vision], self._layout) for e in missing)
        self.gate.learn_encoding(patches, seconds)
        requests = {encoding.request for encoding in missing}
        for chunk in step.prefills:
            if chunk.sequence.request in requests:
                chunk.sequence.vision_seconds += seconds

    def _note_end(self, sequence: Sequence) -> None:
        """A sequence has ended: its place is free; with the last one, its request is forgotten."""
        request = sequence.request
        self.gate.end(self._tickets[request])
        if sequence.finish is not None and sequence.finish.reason in _SAYS_HOW_LONG:
            is_whole = sequence.finish.reason is not FinishReason.DEADLINE
            self.gate.learn_answer(len(sequence.output_token_ids), is_whole=is_whole)
        if not request.is_finished:
            return
        del self._requests[request.owner, request.request_id]
        del self._tickets[request]
        self._grammar_of.pop(request, None)
        self._compiling = [(o, r) for o, r in self._compiling if r is not request]
        self._isolation.end(request, self._clock())
        if self.scheduler.only is request:
            self.scheduler.only = None
        self.runner.forget(request)
        # The two name each other: only the garbage collector would free them, and with them the
        # pixels. It comes seldom in a process of so many objects.
        request.sequences = []
