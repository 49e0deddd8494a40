"""Who runs next: which sequences decode, which prompts advance, which pictures are encoded.

Pure Python over tokens, blocks and bytes; it never sees a tensor. Order is by rank (arrival time
plus a head start per priority), which makes waiting finite for every class: the lowest rank is
served first, is never preempted for a higher one, and any sequence admitted at all fits the pool
alone. That is why the loop cannot deadlock or starve.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache, EmbeddingKey
from inference.protocol import Finish
from inference.sequence import Request, Sequence, SequenceState
from inference.spans import VisualLayout, VisualSpan, num_patches


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


@dataclass(slots=True, frozen=True)
class Chunk:
    """Tokens [start, end) of one sequence to run through the model."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Tokens to run."""
        return self.end - self.start

    @property
    def completes(self) -> bool:
        """The chunk reaches the newest token, so the next one can be chosen."""
        return self.end == self.sequence.num_tokens


@dataclass(slots=True, frozen=True)
class Encoding:
    """A picture to encode before this step's chunks run."""

    key: EmbeddingKey
    request: Request
    vision: int


@dataclass(slots=True)
class Step:
    """One step's work: single-token chunks of decoding sequences, prefill chunks, pictures."""

    decodes: list[Chunk] = field(default_factory=list[Chunk])
    prefills: list[Chunk] = field(default_factory=list[Chunk])
    encodings: list[Encoding] = field(default_factory=list[Encoding])

    @property
    def chunks(self) -> list[Chunk]:
        """All chunks, decodes first: the order of the batch's rows."""
        return self.decodes + self.prefills


def _order(sequence: Sequence) -> tuple[float, float, int]:
    return (sequence.request.rank, sequence.request.arrival_time, sequence.index)


class Scheduler:
    """Owns the queue, the running sequences, the block pool and the embedding cache."""

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
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
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
        insort(self.waiting, sequence, key=_order)

    def schedule(self) -> Step:
        """Plan the next step and give its sequences their blocks."""
        step = Step()
        budget = self.limits.max_num_batched_tokens
        for sequence in list(self.running):
            if sequence.state is SequenceState.DECODE and self._grow(sequence):
                step.decodes.append(
                    Chunk(sequence, sequence.num_computed_tokens, sequence.num_tokens)
                )
        budget -= len(step.decodes)
        patches = self.limits.max_num_encoded_patches
        for sequence in self._prefill_candidates():
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
            self._remove(self.waiting, sequence)
        else:
            self._remove(self.running, sequence)
            self._give_back(sequence)
        sequence.end(finish)

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

    def _prefill_candidates(self) -> Iterator[Sequence]:
        yield from [s for s in self.running if s.state is SequenceState.PREFILL]
        for sequence in list(self.waiting):
            if self._waits_for_sibling(sequence):
                continue
            if len(self.running) >= self.limits.max_num_seqs or not self._admit(sequence):
                return
            yield sequence

    def _waits_for_sibling(self, sequence: Sequence) -> bool:
        """A request's first sequence computes the prompt; the others then find it cached."""
        leader = sequence.request.sequences[0]
        return sequence is not leader and leader.state in (
            SequenceState.WAITING,
            SequenceState.PREFILL,
        )

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
        self._remove(self.waiting, sequence)
        insort(self.running, sequence, key=_order)
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
            if (cost > patches and patches < self.limits.max_num_encoded_patches) or not (
                self._secure_features(step, sequence, span)
            ):
                end = max(start, span.start)
                break
            patches -= cost
        if end > start:
            step.prefills.append(Chunk(sequence, start, end))
        return end - start, patches

    def _encoding_cost(self, sequence: Sequence, span: VisualSpan) -> int:
        if self._key(sequence.request, span.vision) in self.embeddings:
            return 0
        return num_patches(sequence.request.visions[span.vision], self.layout)

    def _secure_features(self, step: Step, sequence: Sequence, span: VisualSpan) -> bool:
        """Pin the span's picture for this sequence, with an encoding where it is not cached."""
        key = self._key(sequence.request, span.vision)
        pins = self._pins.setdefault(sequence, set())
        if key in pins:
            return True
        if key not in self.embeddings:
            vision = sequence.request.visions[span.vision]
            num_tokens = num_patches(vision, self.layout) // self.layout.merge_size**2
            num_bytes = num_tokens * self.limits.bytes_per_visual_token
            if not self.embeddings.has_room(num_bytes):
                return False
            self.embeddings.reserve(key, num_bytes)
            step.encodings.append(Encoding(key, sequence.request, span.vision))
        else:
            self.embedding_cache_hits += 1
        self.embedding_cache_queries += 1
        self.embeddings.pin(key)
        pins.add(key)
        return True

    def _unpin_passed(self, sequence: Sequence) -> None:
        """Keep a pin on the next picture only: waiting for one while holding more may deadlock."""
        ahead = (s for s in sequence.request.spans if s.end > sequence.num_computed_tokens)
        needed = {self._key(sequence.request, span.vision) for span in islice(ahead, 1)}
        self._unpin(sequence, self._pins.get(sequence, set()) - needed)

    def _unpin(self, sequence: Sequence, keys: Iterable[EmbeddingKey]) -> None:
        pins = self._pins.get(sequence, set())
        for key in list(keys):
            self.embeddings.unpin(key)
            pins.discard(key)
        if not pins:
            self._pins.pop(sequence, None)

    def _grow(self, sequence: Sequence) -> bool:
        """Make room for the newest token, at the cost of the highest rank; False: it was itself."""
        while len(sequence.block_table) < sequence.num_blocks_for(sequence.num_tokens):
            if sequence.state is not SequenceState.DECODE:
                return False
            if self.blocks.num_free:
                sequence.block_table += self.blocks.allocate(1)
            else:
                self._preempt(self.running[-1])
        return sequence.state is SequenceState.DECODE

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running sequence back in the queue; its tokens stay, its blocks are recomputed."""
        self._remove(self.running, sequence)
        self._give_back(sequence)
        sequence.move_to(SequenceState.WAITING)
        self.add(sequence)
        self.num_preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = 0
        self._unpin(sequence, set(self._pins.get(sequence, ())))

    def _key(self, request: Request, vision: int) -> EmbeddingKey:
        return (request.tenant, request.visions[vision].content_hash)

    def _remove(self, sequences: list[Sequence], sequence: Sequence) -> None:
        index = bisect_left(sequences, _order(sequence), key=_order)
        while sequences[index] is not sequence:
            index += 1
        del sequences[index]
