"""Random traces through the scheduler, with a runner that only notes what each slot holds."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache
from inference.protocol import Finish, FinishReason, SamplingParams, Vision
from inference.scheduler import Scheduler, SchedulerLimits
from inference.sequence import Owner, Request, Sequence, SequenceState
from inference.spans import VisualLayout, locate_spans, num_patches

IMAGE, VIDEO = 90, 91
LAYOUT = VisualLayout(IMAGE, VIDEO, patch_size=1, merge_size=1, temporal_patch_size=2)
BYTES_PER_TOKEN = 10


def vision(content, rows, columns):
    return Vision(
        height=rows,
        width=columns,
        pixels=memoryview(bytes(rows * columns * 3)),
        content_hash=bytes([content, rows, columns]) + bytes(29),
    )


@dataclass(frozen=True)
class Asked:
    """A request of a trace. parts: texts (seed, length) and pictures (content, rows, columns)."""

    parts: tuple
    max_tokens: int = 4
    num_sequences: int = 1
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    prefix: int = 0
    steps_before: int = 0
    cancelled_after: int | None = None

    @property
    def visions(self):
        return [vision(*part) for part in self.parts if len(part) == 3]

    @property
    def prompt(self):
        tokens = []
        for part in self.parts:
            if len(part) == 3:
                tokens += [IMAGE] * (part[1] * part[2])
            else:
                tokens += [part[0] * 20 + i for i in range(part[1])]
        return tokens


def order(sequence):
    return (sequence.request.rank, sequence.request.arrival_time, sequence.index)


def line(sequence):
    """Whom a sequence waits among, in order."""
    return (sequence.request.priority, sequence.request.account)


class Trace:
    """Drives a scheduler as the engine does, and checks what it promises in every step."""

    def __init__(
        self,
        *,
        num_blocks=20,
        block_size=4,
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_num_encoded_patches=16,
        max_bytes=100,
        step_seconds=1.0,
    ):
        self.limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_encoded_patches=max_num_encoded_patches,
            block_size=block_size,
            bytes_per_visual_token=BYTES_PER_TOKEN,
        )
        self.blocks = BlockPool(num_blocks)
        self.embeddings = EmbeddingCache(max_bytes)
        self.scheduler = Scheduler(self.limits, self.blocks, self.embeddings, LAYOUT)
        self.slots = {}
        self.sequences = []
        self.now = 1.0
        self.step_seconds = step_seconds

    def fits(self, asked):
        """Whether the pool holds it alone; the engine refuses the others."""
        size = self.blocks.num_usable * self.limits.block_size
        return len(asked.prompt) + asked.max_tokens <= size

    def add(self, asked):
        """Queue a request."""
        prompt, visions = asked.prompt, asked.visions
        request = Request(
            owner=Owner(0),
            request_id=str(len(self.sequences)),
            prompt_token_ids=prompt,
            sampling=SamplingParams(max_tokens=asked.max_tokens),
            visions=visions,
            spans=locate_spans(prompt, visions, LAYOUT),
            tenant=asked.tenant,
            account=asked.tenant,
            rank=self.now + 10 * asked.priority,
            arrival_time=self.now,
            priority=asked.priority,
            weight=asked.weight,
        )
        self.now += 0.01
        prefix = [token % 3 for token in range(min(asked.prefix, asked.max_tokens - 1))]
        request.sequences = [
            Sequence(request, index, self.limits.block_size, list(prefix))
            for index in range(asked.num_sequences)
        ]
        self.sequences += request.sequences
        for sequence in request.sequences:
            self.scheduler.add(sequence)
        return request

    def end(self, sequence, reason=FinishReason.CANCELLED):
        count = len(sequence.output_token_ids)
        self.scheduler.finish(sequence, Finish(reason=reason, num_output_tokens=count))

    def cancel(self, request):
        for sequence in request.sequences:
            if sequence.state is not SequenceState.FINISHED:
                self.end(sequence)

    def step(self):
        """One step; a promise broken is an AssertionError."""
        self.now += self.step_seconds
        running_before = list(self.scheduler.running)
        had_work = self.scheduler.has_work

        step = self.scheduler.schedule(self.now)

        assert bool(step.chunks) == had_work
        self._check_order(running_before)
        self._check_budgets(step)
        for encoding in step.encodings:
            assert not self.embeddings.is_stored(encoding.key)
            self.embeddings.store(encoding.key, "features")
        for chunk in step.chunks:
            self._compute(chunk)
        for chunk in step.chunks:
            completes = chunk.completes
            self.scheduler.advance(chunk)
            if completes:
                self._append(chunk.sequence)
        self.scheduler.check_integrity()
        return step

    def run(self):
        """Step to the end; nothing is then held."""
        for _ in range(3000):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work
        assert all(sequence.finish is not None for sequence in self.sequences)
        assert self.blocks.num_free == self.blocks.num_usable
        assert self.embeddings.num_pinned_bytes == 0
        assert self.embeddings.num_bytes <= self.embeddings.max_bytes
        assert self.scheduler._pins == {}

    def step_until(self, happened):
        """Step until it has; within bounds."""
        for _ in range(200):
            if happened():
                return
            self.step()
        raise AssertionError("it never happened")

    def _append(self, sequence):
        tokens = sequence.output_token_ids
        tokens.append(len(tokens) % 3)
        if len(tokens) == sequence.request.sampling.max_tokens:
            self.end(sequence, FinishReason.LENGTH)

    def _compute(self, chunk):
        """Fill the chunk's slots after looking at those it reads."""
        sequence = chunk.sequence
        size = self.limits.block_size
        contents = self._contents(sequence, chunk.end)
        assert 0 <= chunk.start < chunk.end <= sequence.num_tokens
        for index in range(chunk.start):
            slot = (sequence.block_table[index // size], index % size)
            assert self.slots[slot] == contents[index]
        tables = [s.block_table for s in self.scheduler.running]
        for index in range(chunk.start, chunk.end):
            block = sequence.block_table[index // size]
            assert sum(table.count(block) for table in tables) == 1  # nobody else reads it
            self.slots[block, index % size] = contents[index]
        for span in sequence.request.spans:
            if span.start < chunk.end and span.end > chunk.start:
                key = sequence.request.embedding_key(span.vision)
                assert self.embeddings.get(key) == "features"

    def _contents(self, sequence, count):
        """What each token's keys and values depend on: everything up to it."""
        request = sequence.request
        pictures = {
            span.start + i: (request.visions[span.vision].content_hash, i)
            for span in request.spans
            for i in range(span.num_tokens)
        }
        contents, before = [], hash(request.tenant)
        for index, token in enumerate(sequence.token_ids(0, count)):
            before = hash((before, token, pictures.get(index)))
            contents.append(before)
        return contents

    def _check_order(self, running_before):
        scheduler = self.scheduler
        waiting = list(scheduler.waiting)
        preempted = [s for s in running_before if s in waiting]
        stayed = [s for s in running_before if s not in waiting]
        assert not preempted or running_before[0] in stayed
        assert all(
            order(s) < order(p)
            for s in stayed
            for p in preempted
            if s.request.account == p.request.account
        )
        admitted = [s for s in scheduler.running if s not in running_before]
        for passed in waiting:
            leader = passed.request.sequences[0]
            follows = leader is not passed and leader.state in (
                SequenceState.WAITING,
                SequenceState.PREFILL,
            )
            assert follows or all(
                order(s) < order(passed) for s in admitted if line(s) == line(passed)
            )

    def _check_budgets(self, step):
        limits = self.limits
        assert len(self.scheduler.running) <= limits.max_num_seqs
        assert sum(chunk.num_tokens for chunk in step.chunks) <= limits.max_num_batched_tokens
        assert all(chunk.num_tokens == 1 and chunk.completes for chunk in step.decodes)
        assert len({chunk.sequence for chunk in step.chunks}) == len(step.chunks)
        patches = [num_patches(e.request.visions[e.vision], LAYOUT) for e in step.encodings]
        assert len(patches) <= 1 or sum(patches) <= limits.max_num_encoded_patches
        assert len({encoding.key for encoding in step.encodings}) == len(step.encodings)
        is_alone = len(self.embeddings) == 1
        assert is_alone or self.embeddings.num_bytes <= self.embeddings.max_bytes


texts = st.tuples(st.integers(0, 2), st.integers(1, 13))
pictures = st.tuples(st.integers(0, 2), st.integers(1, 2), st.integers(1, 7))
requests = st.builds(
    Asked,
    parts=st.lists(texts | pictures, min_size=1, max_size=5).map(tuple),
    max_tokens=st.integers(1, 12),
    num_sequences=st.integers(1, 4),
    priority=st.integers(-2, 2),
    tenant=st.sampled_from(["", "", "b"]),
    weight=st.sampled_from([1.0, 0.5, 3.0]),
    prefix=st.integers(0, 5),
    steps_before=st.integers(0, 5),
    cancelled_after=st.none() | st.integers(0, 9),
)


@given(
    st.lists(requests, min_size=1, max_size=8),
    st.builds(
        Trace,
        num_blocks=st.integers(8, 30),
        block_size=st.sampled_from([1, 2, 4, 8]),
        max_num_seqs=st.integers(1, 6),
        max_num_batched_tokens=st.integers(1, 30),
        max_num_encoded_patches=st.integers(1, 30),
        max_bytes=st.integers(0, 300),
    ),
)
@settings(deadline=None, max_examples=150)
def test_any_trace_keeps_every_promise(arrivals, trace):
    """No block lost or written while shared, no wrong hit, progress in every step, one end each."""
    cancels = []
    for asked in arrivals:
        for _ in range(asked.steps_before):
            trace.step()
            cancels = [(count - 1, request) for count, request in cancels]
            for _, request in (entry for entry in cancels if entry[0] < 0):
                trace.cancel(request)
        if not trace.fits(asked):
            continue
        request = trace.add(asked)
        if asked.cancelled_after is not None:
            cancels.append((asked.cancelled_after, request))
    for count, request in cancels:
        for _ in range(min(count, 2)):
            trace.step()
        trace.cancel(request)
        trace.scheduler.check_integrity()

    trace.run()


def test_a_request_with_the_same_picture_before_and_behind_another_ends():
    """A pin held for later would keep the other picture out for ever."""
    first, second = (0, 1, 6), (1, 1, 6)
    trace = Trace(max_bytes=60)
    trace.add(Asked((first, (0, 2), second, (1, 2), first)))

    trace.run()


def test_preemption_takes_the_last_in_rank_and_gives_everything_back():
    trace = Trace(num_blocks=8, block_size=4)
    early = trace.add(Asked(((0, 8),), max_tokens=16)).sequences[0]
    late = trace.add(Asked(((1, 8),), max_tokens=16)).sequences[0]
    trace.step_until(lambda: trace.scheduler.num_preemptions)

    assert late.state is SequenceState.WAITING
    assert (late.block_table, late.num_computed_tokens) == ([], 0)
    assert early.state is SequenceState.DECODE
    trace.run()


def test_a_preempted_sequence_gets_its_blocks_back_from_the_cache():
    trace = Trace(num_blocks=8, block_size=4)
    trace.add(Asked(((0, 8),), max_tokens=9))
    late = trace.add(Asked(((1, 8),), max_tokens=16)).sequences[0]
    trace.step_until(lambda: trace.scheduler.num_preemptions)
    assert late.state is SequenceState.WAITING
    hits = trace.scheduler.prefix_cache_hits
    trace.run()

    assert trace.scheduler.prefix_cache_hits > hits


@pytest.mark.parametrize("state", ["waiting", "prefill", "decode"])
def test_a_cancelled_sequence_gives_its_blocks_back(state):
    trace = Trace(max_num_seqs=1, max_num_batched_tokens=4)
    other = trace.add(Asked(((0, 8),), max_tokens=30))
    victim = other if state != "waiting" else trace.add(Asked(((1, 8),)))
    trace.step()
    trace.step_until(lambda: victim.sequences[0].state is SequenceState[state.upper()])

    trace.cancel(victim)

    assert victim.sequences[0].block_table == []
    trace.scheduler.check_integrity()
    trace.run()


def test_siblings_share_the_prompts_blocks():
    trace = Trace(num_blocks=30, block_size=4, max_num_batched_tokens=64)
    trace.add(Asked(((0, 13), (1, 3)), max_tokens=3, num_sequences=4))
    trace.step()  # the first computes the prompt
    trace.step()  # the others find it

    tables = [sequence.block_table for sequence in trace.scheduler.running]
    assert len(tables) == 4
    assert len({tuple(table[:3]) for table in tables}) == 1
    trace.run()


def test_a_lower_class_is_served_before_what_came_after_its_head_start():
    """Ten seconds per class: later than that, even the highest class waits."""
    trace = Trace(max_num_seqs=1)
    started = []
    low = trace.add(Asked(((0, 4),), max_tokens=2, priority=1))
    for _ in range(40):  # one urgent request a second, each taking two
        trace.add(Asked(((1, 4),), max_tokens=2))
        trace.step()
        started += [s.request for s in trace.scheduler.running if s.request not in started]
    trace.run()

    before = started[: started.index(low)]
    assert before
    assert all(request.arrival_time < low.arrival_time + 10 for request in before)


def test_a_tenant_with_ten_times_the_load_does_not_hold_up_another():
    """Of two that always want something, each gets half of the work."""
    trace = Trace(max_num_seqs=2, num_blocks=60)
    for _ in range(40):
        trace.add(Asked(((0, 8),), max_tokens=6, tenant="heavy"))
    light = [trace.add(Asked(((1, 8),), max_tokens=6, tenant="light")) for _ in range(4)]

    trace.step_until(lambda: all(request.is_finished for request in light))

    ended = {s.request.request_id for s in trace.sequences if s.finish is not None}
    assert len(ended) <= 4 + 4 + 2
    trace.run()


def test_a_light_callers_first_tokens_wait_for_no_heavy_callers_prompt():
    trace = Trace(max_num_seqs=40, num_blocks=600, max_num_batched_tokens=64, step_seconds=0.01)
    for number in range(40):
        trace.add(Asked(((5 + number, 60),), max_tokens=3, tenant="heavy"))
    for _ in range(16):
        trace.step()
    light = trace.add(Asked(((1, 8),), max_tokens=40, tenant="light")).sequences[0]
    began = trace.scheduler.num_admissions

    steps = [trace.step()]
    while light.finish is None:
        steps.append(trace.step())

    beside = [any(c.sequence is not light for c in step.prefills) for step in steps]
    assert trace.scheduler.num_admissions > began + 1
    assert not any(beside[:32])
    assert any(beside[32:])
    trace.run()


def test_steps_are_short_for_a_while_after_a_light_caller_was_here():
    trace = Trace(max_num_seqs=8, num_blocks=400, max_num_batched_tokens=64)
    for number in range(60):
        trace.add(Asked(((5 + number, 60),), max_tokens=2, tenant="heavy"))
    sizes = [trace.step().num_prefill_tokens for _ in range(8)]
    trace.add(Asked(((1, 4),), max_tokens=1, tenant="light"))
    trace.step()
    shortly_after = [trace.step().num_prefill_tokens for _ in range(8)]
    for _ in range(4):
        trace.step()
    long_after = [trace.step().num_prefill_tokens for _ in range(4)]

    assert max(sizes) > 32
    assert max(shortly_after) <= 16
    assert max(long_after) > 32
    trace.run()


def test_nobody_is_light_beside_a_more_urgent_class():
    trace = Trace(max_num_seqs=40, num_blocks=400, max_num_batched_tokens=64)
    for number in range(30):
        trace.add(Asked(((5 + number, 60),), max_tokens=6, tenant="heavy", priority=-1))
    for _ in range(8):
        trace.step()
    light = trace.add(Asked(((1, 8),), max_tokens=20, tenant="light")).sequences[0]
    trace.step_until(lambda: light.state is not SequenceState.WAITING)

    assert all(s.finish is not None or s.request.account == "light" for s in trace.sequences[:20])
    trace.run()


def test_a_tenants_weight_is_its_share():
    trace = Trace(max_num_seqs=4, num_blocks=60)
    for _ in range(60):
        trace.add(Asked(((0, 8),), max_tokens=6, tenant="a", weight=3.0))
        trace.add(Asked(((1, 8),), max_tokens=6, tenant="b"))
    for _ in range(60):
        trace.step()

    ended = [s.request.tenant for s in trace.sequences if s.finish is not None]
    assert 2.5 < ended.count("a") / ended.count("b") < 3.5
    trace.run()


def test_who_was_away_has_nothing_saved_up():
    """Else a tenant that comes back would shut out the others until it has caught up."""
    trace = Trace(max_num_seqs=1)
    for _ in range(20):
        trace.add(Asked(((0, 8),), max_tokens=6, tenant="steady"))
    trace.step_until(lambda: sum(s.finish is not None for s in trace.sequences) == 10)
    back = [trace.add(Asked(((1, 8),), max_tokens=6, tenant="back")) for _ in range(5)]

    trace.step_until(lambda: all(request.is_finished for request in back))

    ended = [s.request.tenant for s in trace.sequences if s.finish is not None]
    assert ended.count("steady") >= 10 + 4
    trace.run()


def test_pictures_count_as_work():
    """A picture of 14 tokens costs its tenant more than a text of 14 tokens costs another."""
    trace = Trace(max_num_seqs=1, max_num_encoded_patches=100, num_blocks=60, max_bytes=0)
    shown = []
    for number in range(14):
        shown.append(trace.add(Asked(((number, 2, 7),), max_tokens=1, tenant="pictures")))
        for seed in (5 + 2 * number, 6 + 2 * number):
            trace.add(Asked(((seed, 14),), max_tokens=1, tenant="texts"))
    trace.step_until(lambda: sum(request.is_finished for request in shown) == 12)

    texts = [s for s in trace.sequences if s.request.tenant == "texts" and s.finish is not None]
    assert len(texts) > 13
    trace.run()


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(1, 12), st.integers(1, 8)),
        min_size=6,
        max_size=40,
    ),
    st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_no_tenant_that_waits_falls_behind_another(asked, max_num_seqs):
    """While two wait, their accounts differ by no more than what runs, whoever asked for how much.

    The most that a step adds to one of them is what was planned before it was looked at again.
    """
    trace = Trace(max_num_seqs=max_num_seqs, num_blocks=60)
    for tenant, length, max_tokens in asked:
        trace.add(Asked(((ord(tenant) % 3, length),), max_tokens=max_tokens, tenant=tenant))
    most = max_num_seqs * max(length + 2 * tokens for _, length, tokens in asked)
    while trace.scheduler.has_work:
        waiting = {s.request.account for s in trace.scheduler.waiting}
        accounts = [trace.scheduler.waiting._accounts[tenant] for tenant in waiting]
        assert not accounts or max(accounts) - min(accounts) <= most
        trace.step()


def test_the_victim_is_the_latest_of_the_tenant_with_most_blocks():
    trace = Trace(num_blocks=14, block_size=4, max_num_seqs=4, max_num_batched_tokens=64)
    first = trace.add(Asked(((0, 8),), max_tokens=20, tenant="heavy")).sequences[0]
    second = trace.add(Asked(((1, 8),), max_tokens=20, tenant="heavy")).sequences[0]
    light = trace.add(Asked(((2, 4),), max_tokens=20, tenant="light")).sequences[0]
    trace.step()
    assert len(trace.scheduler.running) == 3
    trace.step_until(lambda: trace.scheduler.num_preemptions)

    assert second.state is SequenceState.WAITING
    assert SequenceState.WAITING not in (first.state, light.state)
    trace.run()


def test_the_first_in_rank_is_no_victim_though_it_holds_most():
    """It would else start over whenever others grow, and might never end."""
    trace = Trace(num_blocks=12, block_size=4, max_num_seqs=4, max_num_batched_tokens=64)
    first = trace.add(Asked(((0, 13), (1, 7)), max_tokens=12, tenant="heavy")).sequences[0]
    trace.add(Asked(((2, 4),), max_tokens=24, tenant="light"))
    trace.step_until(lambda: trace.scheduler.num_preemptions)

    assert first.state is SequenceState.DECODE
    trace.run()


@pytest.mark.parametrize("num_blocks", range(40, 46))
def test_who_has_grown_may_still_be_the_victim_of_the_same_step(num_blocks):
    """Then it does not run in that step; every chunk is checked against its blocks."""
    trace = Trace(num_blocks=num_blocks, block_size=1, max_num_batched_tokens=64)
    trace.add(Asked(((0, 4),), max_tokens=16, tenant="light"))
    heavy = trace.add(Asked(((1, 12),), max_tokens=16, tenant="heavy")).sequences[0]
    trace.add(Asked(((2, 4),), max_tokens=16, tenant="other"))
    trace.step_until(lambda: trace.scheduler.num_preemptions)

    assert heavy.state is SequenceState.WAITING
    trace.run()


def test_one_request_alone_keeps_the_others_waiting():
    trace = Trace(max_num_seqs=4, max_num_batched_tokens=64)
    others = [trace.add(Asked(((seed, 5),), max_tokens=8)) for seed in (0, 1)]
    trace.step()
    scheduler = trace.scheduler

    scheduler.pause()
    alone = trace.add(Asked(((2, 5),), max_tokens=6, num_sequences=2, tenant="alone"))
    scheduler.only = alone
    trace.step_until(lambda: alone.is_finished)

    assert scheduler.running == []
    assert all(len(request.sequences[0].output_token_ids) == 1 for request in others)
    scheduler.only = None
    trace.run()


def test_a_picture_above_the_patch_budget_runs_alone():
    trace = Trace(max_num_encoded_patches=4, max_bytes=10_000, max_num_batched_tokens=64)
    large = trace.add(Asked(((0, 2, 7), (0, 2))))
    small = trace.add(Asked(((1, 1, 3), (0, 2))))

    first, second = trace.step(), trace.step()

    assert [encoding.request for encoding in first.encodings] == [large]
    assert [encoding.request for encoding in second.encodings] == [small]
    trace.run()


def test_one_picture_of_two_requests_is_encoded_once():
    trace = Trace(max_num_batched_tokens=64)
    for _ in range(2):
        trace.add(Asked(((0, 1, 4), (0, 2))))

    step = trace.step()

    assert len(step.prefills) == 2
    assert len(step.encodings) == 1
    assert (trace.scheduler.embedding_cache_queries, trace.scheduler.embedding_cache_hits) == (2, 1)
    trace.run()


def test_more_sequences_than_a_steps_tokens_never_run():
    trace = Trace(max_num_seqs=6, max_num_batched_tokens=2)
    for _ in range(5):
        trace.add(Asked(((0, 3),)))

    trace.run()  # every step is checked against its token budget


def test_requests_of_one_moment_are_told_apart():
    trace = Trace()
    pair = []
    for seed in (0, 1):
        trace.now = 1.0
        pair.append(trace.add(Asked(((seed, 4),))))

    trace.cancel(pair[1])
    trace.step()

    assert [sequence.request for sequence in trace.scheduler.running] == pair[:1]
    trace.run()


def test_a_newcomer_leaves_the_running_ones_room_to_grow():
    """Else admission and preemption take turns."""
    trace = Trace(num_blocks=8, block_size=4)
    trace.add(Asked(((0, 15),), max_tokens=4))
    trace.step()
    newcomer = trace.add(Asked(((1, 8),), max_tokens=4)).sequences[0]

    trace.step()

    assert trace.blocks.num_free == 3  # what it needs, to the block
    assert newcomer.state is SequenceState.WAITING
    trace.run()
    assert trace.scheduler.num_preemptions == 0


def test_a_request_that_fills_the_pool_to_the_last_token_ends():
    trace = Trace(num_blocks=6, block_size=4)
    full = Asked(((0, 8),), max_tokens=12)
    assert trace.fits(full)
    assert not trace.fits(Asked(((0, 8),), max_tokens=13))
    trace.add(full)

    trace.run()


@pytest.mark.parametrize("fault", ["waiting", "pinned"])
def test_the_integrity_check_finds_what_is_held_by_nobody(fault):
    trace = Trace()
    request = trace.add(Asked(((0, 4),)))
    if fault == "waiting":
        request.sequences[0].block_table = [1]
        trace.blocks.allocate(1)
        message = "block"
    else:
        trace.embeddings.reserve(("", b"a"), 10)
        trace.embeddings.pin(("", b"a"))
        message = "pinned by nobody"

    with pytest.raises(RuntimeError, match=message):
        trace.scheduler.check_integrity()


def test_the_integrity_check_finds_a_waiting_sequence_with_blocks():
    trace = Trace()
    request = trace.add(Asked(((0, 4),)))
    request.sequences[0].block_table = [1]

    with pytest.raises(RuntimeError, match="a waiting sequence holds blocks"):
        trace.scheduler.check_integrity()
