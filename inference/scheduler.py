"""Who runs next: which sequences decode, which prompts advance, which pictures are encoded.

Pure Python over tokens, blocks and bytes; it never sees a tensor. Who is admitted next is the fair
queue's to say; a light caller's prompt and first tokens are not kept waiting by a heavy one's
prompts. Of those that run, the lowest rank (arrival time plus a head start per priority) is
never preempted, and any sequence admitted at all fits the pool alone: so it ends, and then the next
one is the lowest. That is why the loop cannot deadlock or starve.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache, EmbeddingKey
from inference.fair_queue import FairQueue, Line, line_of
from inference.protocol import Finish
from inference.sequence import Request, Sequence, SequenceState, put_in_order, take_out
from inference.spans import VisualLayout, VisualSpan, num_patches
from inference.step import Chunk, Encoding, Step

# Once a light caller was here its next request is likely soon. Until this long after, steps are
# shorter, so that it waits less for the one under way.
_SHORT_SECONDS = 10.0
_SHORTER = 4
# So many tokens of a light caller's answer wait for no other's prompt: most of a short answer.
_NUM_FIRST_TOKENS = 32


class SchedulerLimits(NamedTuple):
    """Budgets of one step and of the pool.

    max_num_batched_tokens: decode rows and prefill tokens together.
    bytes_per_visual_token: what the embedding cache keeps for each.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_encoded_patches: int
    block_size: int
    bytes_per_visual_token: int


class Scheduler:
    """Owns the queue, the running sequences, the block pool and the embedding cache.

    running: by rank. only: the one request that may be admitted; None is any. is_full: the last
    step left a sequence waiting because rows or blocks were short.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockPool,
        embeddings: EmbeddingCache[Any],
        layout: VisualLayout,
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self.embeddings = embeddings
        self.layout = layout
        self.waiting = FairQueue()
        self.running: list[Sequence] = []
        self.only: Request | None = None
        self.is_full = False
        self._short_until = 0.0
        self.num_admissions = 0
        self.num_preemptions = 0
        self.prefix_cache_queries = 0
        self.prefix_cache_hits = 0
        self.embedding_cache_queries = 0
        self.embedding_cache_hits = 0
        self._pins: dict[Sequence, set[EmbeddingKey]] = {}

    @property
    def has_work(self) -> bool:
        """Some sequence is neither finished nor cancelled."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence that fits the pool alone."""
        self.waiting.add(sequence)

    def schedule(self, now: float = 0.0) -> Step:
        """Plan the next step and give its sequences their blocks; now: on the engine's clock."""
        step = Step()
        self.is_full = False
        self.waiting.now = now
        light = self.waiting.light_lines(self.running)
        if light:
            self._short_until = now + _SHORT_SECONDS
        budget = self.limits.max_num_batched_tokens
        grown = [s for s in list(self.running) if self._is_decoding(s) and self._grow(s)]
        # One that has grown may have been preempted for another one since.
        for sequence in filter(self._is_decoding, grown):
            self._add_chunk(step.decodes, sequence, sequence.num_tokens)
        budget -= len(step.decodes)
        patches = self.limits.max_num_encoded_patches
        if now < self._short_until:
            budget, patches = -(-budget // _SHORTER), patches // _SHORTER
        for sequence in self._prefill_candidates(step, light):
            if budget <= 0:
                break
            num_tokens, patches = self._plan_prefill(step, sequence, budget, patches)
            budget -= num_tokens
        return step

    def advance(self, chunk: Chunk) -> None:
        """A chunk was computed: its full blocks can be shared, its pictures may go."""
        sequence = chunk.sequence
        first = sequence.num_computed_tokens // self.limits.block_size
        sequence.num_computed_tokens = chunk.end
        last = chunk.end // self.limits.block_size
        if last > first:
            keys = sequence.block_keys(last)
            for number in range(first, last):
                self.blocks.publish(sequence.block_table[number], keys[number])
        if sequence.state is SequenceState.PREFILL:
            self._unpin_passed(sequence)
            if chunk.completes:
                sequence.move_to(SequenceState.DECODE)

    def finish(self, sequence: Sequence, finish: Finish) -> None:
        """End a sequence in any live state and give back all it holds."""
        if sequence.state is SequenceState.WAITING:
            self.waiting.remove(sequence)
        else:
            self._stop_running(sequence)
        sequence.end(finish)

    def pause(self) -> None:
        """Put every running sequence back in the queue; what it has computed may be found again."""
        for sequence in list(self.running):
            self._preempt(sequence)

    def check_integrity(self) -> None:
        """Compare every count with what the sequences hold.

        Raises:
            RuntimeError: a block or a pin is lost or held twice.
        """
        self.blocks.check_integrity(s.block_table for s in self.running)
        if any(s.block_table for s in self.waiting):
            raise RuntimeError("a waiting sequence holds blocks")
        if not self.running and self.embeddings.num_pinned_bytes:
            raise RuntimeError("a picture is pinned by nobody")

    def _prefill_candidates(self, step: Step, light: set[Line]) -> Iterator[Sequence]:
        """Give those whose prompts may advance, in order.

        No other's does in a step that brings a light caller on to its first tokens.
        """
        begun = [s for s in self.running if s.state is SequenceState.PREFILL]
        begun.sort(key=lambda sequence: sequence.turn)
        if light:
            yield from (s for s in begun if line_of(s) in light)
            yield from self._admitted(light)
            if any(
                line_of(chunk.sequence) in light
                and len(chunk.sequence.output_token_ids) < _NUM_FIRST_TOKENS
                for chunk in step.chunks
            ):
                return
        yield from (s for s in begun if line_of(s) not in light)
        yield from self._admitted(None)

    def _admitted(self, lines: set[Line] | None) -> Iterator[Sequence]:
        """Let sequences of these lines, or of all, run in their turn, while there is room."""

        def may_run(sequence: Sequence) -> bool:
            return (lines is None or line_of(sequence) in lines) and self._is_ready(sequence)

        while (sequence := self.waiting.next(may_run)) is not None:
            if len(self.running) >= self.limits.max_num_seqs or not self._admit(sequence):
                self.is_full = True
                return
            yield sequence

    def _is_ready(self, sequence: Sequence) -> bool:
        """Nothing but room keeps it from running."""
        if self.only is not None and sequence.request is not self.only:
            return False
        # A request's first sequence computes the prompt; the others then find it cached.
        leader = sequence.request.sequences[0]
        return sequence is leader or leader.state not in (
            SequenceState.WAITING,
            SequenceState.PREFILL,
        )

    def _is_decoding(self, sequence: Sequence) -> bool:
        return sequence.state is SequenceState.DECODE

    def _add_chunk(self, chunks: list[Chunk], sequence: Sequence, end: int) -> None:
        """Plan a sequence's tokens up to `end`, and charge its account for those that are new."""
        start = sequence.num_computed_tokens
        chunks.append(Chunk(sequence, start, end))
        charged = max(start, sequence.num_charged_tokens)
        if end > charged:
            self.waiting.charge_tokens(sequence.request, charged, end)
            sequence.num_charged_tokens = end

    def _admit(self, sequence: Sequence) -> bool:
        size = self.limits.block_size
        # At least one token is left to compute: its logits choose the next one.
        keys = sequence.block_keys((sequence.num_tokens - 1) // size)
        found = self.blocks.find(keys)
        needed = sequence.num_blocks_for(sequence.num_tokens + 1) - len(found)
        free = self.blocks.num_free - self.blocks.num_unheld(found)
        # The margin lets running sequences grow for a while before one must be preempted.
        margin = len(self.running) if self.running else 0
        if needed + margin > free and (self.running or needed > free):
            return False
        self.blocks.share(found)
        sequence.block_table = found + self.blocks.allocate(needed)
        sequence.num_computed_tokens = len(found) * size
        if sequence.admitted_time is None:
            sequence.num_cached_tokens = min(
                sequence.num_computed_tokens, len(sequence.request.prompt_token_ids)
            )
        self.prefix_cache_queries += len(keys)
        self.prefix_cache_hits += len(found)
        self.waiting.remove(sequence)
        put_in_order(self.running, sequence)
        self.num_admissions += 1
        sequence.turn = self.num_admissions
        sequence.move_to(SequenceState.PREFILL)
        return True

    def _plan_prefill(
        self, step: Step, sequence: Sequence, budget: int, patches: int
    ) -> tuple[int, int]:
        start = sequence.num_computed_tokens
        end = min(sequence.num_tokens, start + budget)
        for span in sequence.request.spans:
            if span.end <= start or span.start >= end:
                continue
            cost = self._encoding_cost(sequence, span)
            if (cost > patches and step.encodings) or not (
                self._secure_features(step, sequence, span)
            ):
                end = max(start, span.start)
                break
            patches -= cost
        if end > start:
            self._add_chunk(step.prefills, sequence, end)
        return end - start, patches

    def _encoding_cost(self, sequence: Sequence, span: VisualSpan) -> int:
        if sequence.request.embedding_key(span.vision) in self.embeddings:
            return 0
        return num_patches(sequence.request.visions[span.vision], self.layout)

    def _secure_features(self, step: Step, sequence: Sequence, span: VisualSpan) -> bool:
        """Pin the span's picture for this sequence, with an encoding where it is not cached."""
        key = sequence.request.embedding_key(span.vision)
        pins = self._pins.setdefault(sequence, set())
        if key in pins:
            return True
        if key not in self.embeddings:
            vision = sequence.request.visions[span.vision]
            patches = num_patches(vision, self.layout)
            num_tokens = patches // self.layout.merge_size**2
            num_bytes = num_tokens * self.limits.bytes_per_visual_token
            if not self.embeddings.has_room(num_bytes):
                return False
            self.embeddings.reserve(key, num_bytes)
            step.encodings.append(Encoding(sequence.request, span.vision))
            self.waiting.charge_patches(sequence.request, patches)
        else:
            self.embedding_cache_hits += 1
        self.embedding_cache_queries += 1
        self.embeddings.pin(key)
        pins.add(key)
        return True

    def _unpin_passed(self, sequence: Sequence) -> None:
        """Keep a pin on the next picture only: waiting for one while holding more may deadlock."""
        ahead = (s for s in sequence.request.spans if s.end > sequence.num_computed_tokens)
        needed = {sequence.request.embedding_key(span.vision) for span in islice(ahead, 1)}
        self._unpin(sequence, self._pins.get(sequence, set()) - needed)

    def _unpin(self, sequence: Sequence, keys: Iterable[EmbeddingKey]) -> None:
        pins = self._pins.get(sequence, set())
        for key in list(keys):
            self.embeddings.unpin(key)
            pins.discard(key)
        if not pins:
            self._pins.pop(sequence, None)

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the newest token, at another's cost; False: it was its own."""
        while len(sequence.block_table) < sequence.num_blocks_for(sequence.num_tokens):
            if sequence.state is not SequenceState.DECODE:
                return False
            if self.blocks.num_free:
                sequence.block_table += self.blocks.allocate(1)
            else:
                self._preempt(self._victim())
        return sequence.state is SequenceState.DECODE

    def _victim(self) -> Sequence:
        """The latest sequence of the account that holds most for its weight; never the very first.

        Whoever is first in rank keeps its blocks until it has ended: that is the loop's progress.
        """
        candidates = self.running[1:] or self.running
        held: Counter[str] = Counter()
        weights: dict[str, float] = {}  # an account's may have changed; its latest request knows
        for sequence in self.running:
            held[sequence.request.account] += len(sequence.block_table)
            weights[sequence.request.account] = sequence.request.weight

        def rank(sequence: Sequence) -> tuple[float, tuple[float, float, int]]:
            account = sequence.request.account
            return held[account] / weights[account], sequence.order

        return max(candidates, key=rank)

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back in the queue; its tokens stay, its blocks are recomputed."""
        self._stop_running(sequence)
        sequence.move_to(SequenceState.WAITING)
        self.add(sequence)
        self.num_preemptions += 1

    def _stop_running(self, sequence: Sequence) -> None:
        take_out(self.running, sequence)
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        self._unpin(sequence, set(self._pins.get(sequence, ())))
