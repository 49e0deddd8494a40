"""One sequence of tokens on its way through the engine: its states, its blocks, its cache keys.

No torch: what the runner keeps per sequence (positions, sampler state) lives in the runner.
"""

import hashlib
import math
from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence as TokenIds
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NewType

from inference.embeddings import EmbeddingKey
from inference.log import request_names
from inference.protocol import Finish, SamplingParams, Vision
from inference.spans import VisualSpan

Owner = NewType("Owner", int)


class SequenceState(Enum):
    """WAITING holds no blocks; PREFILL and DECODE hold blocks; FINISHED is for ever."""

    WAITING = auto()
    PREFILL = auto()
    DECODE = auto()
    FINISHED = auto()


ALLOWED_MOVES: dict[SequenceState, frozenset[SequenceState]] = {
    SequenceState.WAITING: frozenset({SequenceState.PREFILL, SequenceState.FINISHED}),
    SequenceState.PREFILL: frozenset(
        {SequenceState.DECODE, SequenceState.WAITING, SequenceState.FINISHED}
    ),
    SequenceState.DECODE: frozenset({SequenceState.WAITING, SequenceState.FINISHED}),
    SequenceState.FINISHED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Request:
    """What one `Generate` asked for, shared by its sequences.

    tenant: whose caches it may use. account: whose work it is. rank: the order in which an
    account's sequences are served and, reversed, preempted; lower goes first. priority: its class,
    part of the rank. weight: the account's share.
    arrival_time, deadline: on the engine's clock. is_suspect: runs while nothing else does.
    traceparent: the W3C name of its span, or empty.
    """

    owner: Owner
    request_id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    visions: list[Vision]
    spans: tuple[VisualSpan, ...]
    tenant: str
    rank: float
    arrival_time: float
    account: str = ""
    priority: int = 0
    weight: float = 1.0
    deadline: float = math.inf
    is_suspect: bool = False
    traceparent: str = ""
    sequences: "list[Sequence]" = field(default_factory=list["Sequence"])

    @property
    def is_finished(self) -> bool:
        """All its sequences have ended."""
        return all(s.state is SequenceState.FINISHED for s in self.sequences)

    @property
    def names(self) -> dict[str, str]:
        """What a log line about it calls it."""
        return request_names(self.request_id, self.traceparent)

    def embedding_key(self, vision: int) -> EmbeddingKey:
        """Under which the features of one of its pictures are kept; no two tenants share one."""
        return (self.tenant, self.visions[vision].content_hash)


@dataclass(slots=True, eq=False)
class Sequence:
    """One continuation of a request's prompt.

    num_computed_tokens: tokens whose keys and values are in the blocks.
    num_cached_tokens: prompt tokens found in the prefix cache when it first ran.
    num_charged_tokens: tokens its account was charged for; those computed again are not.
    turn: its number among the admissions; the last one's, if it was preempted.
    block_table: blocks in order; block i holds tokens [i * block_size, (i + 1) * block_size).
    admitted_time, first_delta_time: None until then, on the engine's clock.
    """

    request: Request
    index: int
    block_size: int
    output_token_ids: list[int] = field(default_factory=list[int])
    state: SequenceState = SequenceState.WAITING
    finish: Finish | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_charged_tokens: int = 0
    turn: int = 0
    block_table: list[int] = field(default_factory=list[int])
    _block_keys: list[bytes] = field(default_factory=list[bytes])
    admitted_time: float | None = None
    first_delta_time: float | None = None
    vision_seconds: float = 0.0

    @property
    def order(self) -> tuple[float, float, int]:
        """Sorts the sequences of an account; no two of one request are alike."""
        return (self.request.rank, self.request.arrival_time, self.index)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens."""
        return len(self.request.prompt_token_ids) + len(self.output_token_ids)

    def token_ids(self, start: int, end: int) -> list[int]:
        """Tokens [start, end) of prompt and output together."""
        prompt = self.request.prompt_token_ids
        split = len(prompt)
        if end <= split:
            return prompt[start:end]
        if start >= split:
            return self.output_token_ids[start - split : end - split]
        return prompt[start:] + self.output_token_ids[: end - split]

    def move_to(self, state: SequenceState) -> None:
        """Change the state.

        Raises:
            RuntimeError: there is no such move.
        """
        if state not in ALLOWED_MOVES[self.state]:
            raise RuntimeError(f"{self.state.name} to {state.name} is no move")
        self.state = state

    def end(self, finish: Finish) -> None:
        """Finish, once and for ever."""
        self.move_to(SequenceState.FINISHED)
        self.finish = finish

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that this many tokens need."""
        return -(-num_tokens // self.block_size)

    def block_keys(self, count: int) -> TokenIds[bytes]:
        """Keys of the first `count` full blocks, equal only where their contents must be.

        What shapes a block's keys and values, from the first token on: the tenant, the tokens, and
        for every picture that reaches into the block its content and where it starts.
        """
        while len(self._block_keys) < count:
            self._block_keys.append(self._next_block_key())
        return self._block_keys[:count]

    def _next_block_key(self) -> bytes:
        number = len(self._block_keys)
        start, end = number * self.block_size, (number + 1) * self.block_size
        parent = self._block_keys[-1] if number else _root_key(self.request.tenant)
        digest = hashlib.blake2b(parent, digest_size=32)
        digest.update(array("q", self.token_ids(start, end)).tobytes())
        for span in self.request.spans:
            if span.start < end and span.end > start:
                vision = self.request.visions[span.vision]
                offsets = array("q", (span.start - start, span.first_row, span.columns))
                digest.update(vision.content_hash + offsets.tobytes())
        return digest.digest()


def put_in_order(line: list[Sequence], sequence: Sequence) -> None:
    """Add a sequence to a line that is sorted by `order`."""
    insort(line, sequence, key=_order)


def take_out(line: list[Sequence], sequence: Sequence) -> None:
    """Remove a sequence from a line that is sorted by `order` and has it."""
    index = bisect_left(line, sequence.order, key=_order)
    while line[index] is not sequence:  # others may have come at the same time
        index += 1
    del line[index]


def _order(sequence: Sequence) -> tuple[float, float, int]:
    return sequence.order


def _root_key(tenant: str) -> bytes:
    return hashlib.blake2b(tenant.encode(), digest_size=32, person=b"tenant").digest()
