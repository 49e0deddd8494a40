"""Gate and scheduler under more than they can carry, on a simulated clock and simulated steps."""

import random
from typing import NamedTuple

import pytest

from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache
from inference.gate import Gate
from inference.protocol import (
    Finish,
    FinishReason,
    Generate,
    Limits,
    Refused,
    SamplingParams,
    Vision,
)
from inference.scheduler import Scheduler, SchedulerLimits
from inference.sequence import Owner, Request, Sequence
from inference.spans import VisualLayout, locate_spans, num_patches

IMAGE, VIDEO = 90, 91
LAYOUT = VisualLayout(IMAGE, VIDEO, patch_size=16, merge_size=2, temporal_patch_size=2)
PIXELS = memoryview(bytes(224 * 224 * 3))
NUM_OUTPUT_TOKENS = 32
WARM_SECONDS = 10.0
LIMITS = Limits(
    block_size=16,
    num_blocks=4000,
    max_num_seqs=64,
    max_num_batched_tokens=896,
    max_num_encoded_patches=2048,
    max_queued_requests=256,
)


class Told(NamedTuple):
    """What a load brought after the warm-up: answers a second, and how many came too late."""

    throughput: float
    num_missed: int


class Simulation:
    """An engine whose steps take as long as a formula says, with some noise."""

    def __init__(self, seed=1):
        self.now = 0.0
        self.dice = random.Random(seed)
        self.gate = Gate(LIMITS, LAYOUT, is_memory_short=lambda: False, clock=lambda: self.now)
        limits = SchedulerLimits(
            LIMITS.max_num_seqs, LIMITS.max_num_batched_tokens, 2048, LIMITS.block_size, 1
        )
        self.scheduler = Scheduler(
            limits, BlockPool(LIMITS.num_blocks), EmbeddingCache(10**9), LAYOUT
        )
        self.tickets = {}
        self.num_asked = 0
        self.ends = []
        self.misses = []

    def ask(self, deadline_seconds):
        """One question about a picture of its own."""
        self.num_asked += 1
        tokens = [100 + self.num_asked] * 40 + [IMAGE] * 49 + [1] * 20
        content_hash = self.num_asked.to_bytes(32)
        visions = [Vision(height=224, width=224, pixels=PIXELS, content_hash=content_hash)]
        sampling = SamplingParams(max_tokens=NUM_OUTPUT_TOKENS)
        ticket = self.gate.admit(
            Generate(
                request_id=str(self.num_asked),
                prompt_token_ids=tokens,
                sampling=sampling,
                visions=visions,
                deadline_seconds=deadline_seconds,
            )
        )
        if isinstance(ticket, Refused):
            return
        request = Request(
            owner=Owner(0),
            request_id=str(self.num_asked),
            prompt_token_ids=tokens,
            sampling=sampling,
            visions=visions,
            spans=locate_spans(tokens, visions, LAYOUT),
            tenant="",
            rank=self.now,
            arrival_time=self.now,
            deadline=ticket.deadline,
        )
        request.sequences = [Sequence(request, 0, LIMITS.block_size)]
        self.tickets[request] = ticket
        self.scheduler.add(request.sequences[0])

    def step(self, arrivals):
        """Run one step; who arrives meanwhile is let in or not meanwhile."""
        for request in [r for r in self.tickets if r.deadline <= self.now]:
            self.misses.append(self.now)
            self.end(request.sequences[0], FinishReason.DEADLINE)
        step = self.scheduler.schedule(self.now)
        for chunk in step.prefills:
            if chunk.sequence.admitted_time is None:
                chunk.sequence.admitted_time = self.now
                self.gate.begin(self.tickets[chunk.sequence.request])
        for encoding in step.encodings:
            self.scheduler.embeddings.store(encoding.key, "features")
        num_rows = len(self.scheduler.running) if self.scheduler.is_full else LIMITS.max_num_seqs
        patches = sum(num_patches(e.request.visions[e.vision], LAYOUT) for e in step.encodings)
        noise = self.dice.lognormvariate(0, 0.1)
        encoding = noise * 1e-4 * patches
        rest = noise * (4e-3 + 3e-4 * len(step.decodes) + 2.2e-4 * step.num_prefill_tokens)
        ended = self.now + encoding + rest
        arrivals(ended)
        self.now = ended
        if patches:
            self.gate.learn_encoding(patches, encoding)
        self.gate.learn_step(
            num_decodes=len(step.decodes),
            num_prefill_tokens=step.num_prefill_tokens,
            num_rows=num_rows,
            seconds=rest,
        )
        for chunk in step.chunks:
            completes = chunk.completes
            self.scheduler.advance(chunk)
            if completes:
                chunk.sequence.output_token_ids.append(5)
                if len(chunk.sequence.output_token_ids) == NUM_OUTPUT_TOKENS:
                    self.ends.append(self.now)
                    self.end(chunk.sequence, FinishReason.LENGTH)

    def end(self, sequence, reason):
        count = len(sequence.output_token_ids)
        self.scheduler.finish(sequence, Finish(reason=reason, num_output_tokens=count))
        self.gate.end(self.tickets.pop(sequence.request))
        self.gate.learn_answer(count, is_whole=reason is FinishReason.LENGTH)

    def told(self):
        ends = [end for end in self.ends if end > WARM_SECONDS]
        misses = [miss for miss in self.misses if miss > WARM_SECONDS]
        return Told(len(ends) / (self.now - WARM_SECONDS), len(misses))


def closed_loop(num_clients, seconds):
    """So many clients that ask again once they have their answer."""
    simulation = Simulation()

    def arrivals(_):
        while len(simulation.tickets) < num_clients:
            simulation.ask(None)

    while simulation.now < WARM_SECONDS + seconds:
        arrivals(simulation.now)
        simulation.step(arrivals)
    return simulation.told()


def open_loop(rate, seconds, deadline_seconds):
    """Clients at random times; whoever is refused does not return."""
    simulation = Simulation()
    due = 0.0

    def arrivals(until):
        nonlocal due
        while due <= until:
            simulation.now = max(simulation.now, due)
            simulation.ask(deadline_seconds)
            due += simulation.dice.expovariate(rate)

    while simulation.now < WARM_SECONDS + seconds:
        if not simulation.scheduler.has_work:
            simulation.now = due
            arrivals(due)
        simulation.step(arrivals)
    return simulation.told()


@pytest.fixture(scope="module")
def best():
    return closed_loop(64, 30).throughput


@pytest.mark.parametrize(
    ("deadline_seconds", "times", "least"),
    [
        pytest.param(5.0, 1.2, 0.92, id="a-little-more"),
        pytest.param(5.0, 3.0, 0.9, id="three-times"),
        pytest.param(20.0, 3.0, 0.95, id="three-times-with-time"),
        pytest.param(2.0, 1.2, 0.8, id="in-a-hurry"),
        pytest.param(2.0, 5.0, 0.8, id="much-more-in-a-hurry"),
        pytest.param(None, 3.0, 0.95, id="three-times-without-deadline"),
    ],
)
def test_what_is_let_in_is_in_time_and_keeps_the_engine_busy(best, deadline_seconds, times, least):
    """From a cold start, when nobody knows how long an answer takes.

    Without learning from answers that were cut, all that is let in comes too late, for ever.
    """
    told = open_loop(best * times, 30, deadline_seconds)

    assert told.num_missed <= 0.01 * told.throughput * 30
    assert told.throughput >= least * best
