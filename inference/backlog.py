"""What waits before the engine, by account: how much, how long, and whose turn it is to give way.

Bounded by sequences, prompt tokens, vision patches and predicted seconds. Over a bound, an account
that has less in the queue takes the place of the newest request of the one that has most: whoever
sends most is turned away first, and a queue of one account is that account's alone. Not locked; the
gate is.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from inference.pace import Pace
from inference.protocol import Generate, Limits


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in; it has a place until the last of its sequences has ended.

    weight: its account's share. arrival_time, deadline: on the engine's clock; a deadline may be
    infinite. num_open: sequences that have not ended. has_begun: one of them runs or ran.
    is_displaced: another account has its place; the engine is to give it up. predicted_seconds:
    from its arrival to its end, as it was let in; None: nobody knew.
    """

    generate: Generate
    weight: float
    arrival_time: float
    deadline: float
    num_patches: int
    num_open: int
    has_begun: bool = False
    is_displaced: bool = False
    predicted_seconds: float | None = None

    @property
    def account(self) -> str:
        """Who shares and quotas count for."""
        return self.generate.caller or self.generate.tenant

    @property
    def load(self) -> "Load":
        """What it adds to the queue."""
        generate = self.generate
        return Load(generate.num_sequences, len(generate.prompt_token_ids), self.num_patches)


class Load(NamedTuple):
    """How much waits."""

    num_sequences: int = 0
    num_tokens: int = 0
    num_patches: int = 0

    def plus(self, other: "Load") -> "Load":
        """Both together."""
        return Load(*(a + b for a, b in zip(self, other, strict=True)))

    def minus(self, other: "Load") -> "Load":
        """What is left without the other."""
        return Load(*(a - b for a, b in zip(self, other, strict=True)))


@dataclass(slots=True, eq=False)
class _Line:
    """The tickets of one account that have not begun, oldest first."""

    weight: float
    load: Load = field(default_factory=Load)
    tickets: dict[Ticket, None] = field(default_factory=dict["Ticket", None])


class Backlog:
    """The tickets that wait, and the number of sequences that run.

    load: of all that waits. num_running: sequences that have begun and not ended. num_rows: how
    many find room to run together.
    """

    def __init__(self, limits: Limits, pace: Pace) -> None:
        self._limits = limits
        self._pace = pace
        self._lines: dict[str, _Line] = {}
        self.load = Load()
        self.num_running = 0
        self.num_rows = limits.max_num_seqs

    def add(self, ticket: Ticket) -> None:
        """Let it wait."""
        line = self._lines.setdefault(ticket.account, _Line(ticket.weight))
        line.weight = ticket.weight
        line.tickets[ticket] = None
        line.load = line.load.plus(ticket.load)
        self.load = self.load.plus(ticket.load)

    def remove(self, ticket: Ticket) -> None:
        """It waits no more."""
        line = self._lines[ticket.account]
        del line.tickets[ticket]
        line.load = line.load.minus(ticket.load)
        self.load = self.load.minus(ticket.load)
        if not line.tickets:
            del self._lines[ticket.account]

    def make_room(self, ticket: Ticket, now: float) -> list[Ticket] | float:
        """Take those out of the queue whose places a newcomer may have.

        Returns:
            Who had to go, nobody as a rule; or, where the newcomer may have no place, the seconds
            until there is one.
        """
        gone: list[Ticket] = []
        while (seconds := self._seconds_over(ticket, now)) is not None:
            victim = self._next_to_go(ticket)
            if victim is None:
                for displaced in reversed(gone):
                    self.add(displaced)
                return seconds
            self.remove(victim)
            gone.append(victim)
        return gone

    def wait_seconds(self, ticket: Ticket, now: float) -> float | None:
        """Predict when a newcomer begins, with fair turns for all accounts; None: nobody knows.

        One whose share is a fourth waits for its own queue, and for three times as much of the
        others', where they have that.
        """
        line = self._lines.get(ticket.account, _Line(ticket.weight))
        weights = sum(other.weight for other in self._lines.values() if other is not line)
        own = line.load.plus(ticket.load)
        ahead = Load(
            *(
                min(total, before + int(weights / ticket.weight * with_it))
                for total, before, with_it in zip(self.load, line.load, own, strict=True)
            )
        )
        return self._seconds_until_begun(ahead, ticket.generate.num_sequences, now)

    def longest_wait_seconds(self, now: float) -> float:
        """Predict when a newcomer begins that waits for everything before it; 0: nobody knows."""
        return self._seconds_until_begun(self.load, 1, now) or 0.0

    def own_seconds(self, ticket: Ticket, now: float) -> float:
        """Predict how long a request takes from its beginning to its end."""
        pace, load = self._pace, ticket.load
        decodes = min(self.num_running, self.num_rows)
        prefill = pace.prefill_seconds(load.num_tokens, load.num_patches, decodes, now) or 0.0
        max_tokens = ticket.generate.sampling.max_tokens
        # Those before it in the queue will decode beside it.
        beside = min(self.num_running + self.load.num_sequences, self.num_rows)
        return prefill + pace.answer_seconds(max_tokens, beside, now)

    def _seconds_until_begun(self, ahead: Load, num_sequences: int, now: float) -> float | None:
        decodes = min(self.num_running, self.num_rows)
        prefill = self._pace.prefill_seconds(ahead.num_tokens, ahead.num_patches, decodes, now)
        if prefill is None:
            return None
        to_end = self.num_running + ahead.num_sequences + num_sequences - self.num_rows
        return prefill + self._pace.answers_seconds(to_end, self.num_rows, now)

    def _seconds_over(self, ticket: Ticket, now: float) -> float | None:
        """Seconds until a newcomer is within every bound; None: it is."""
        limits, pace, load = self._limits, self._pace, ticket.load
        num_live = self.load.num_sequences + self.num_running
        most = limits.max_num_seqs + limits.max_queued_requests
        if num_live >= most:
            return pace.answers_seconds(num_live + 1 - most, self.num_rows, now)
        if not self.load.num_sequences:
            return None  # what is over a bound by itself waits alone
        tokens = _excess(self.load.num_tokens + load.num_tokens, limits.max_queued_tokens)
        patches = _excess(self.load.num_patches + load.num_patches, limits.max_queued_patches)
        if tokens or patches:
            return pace.prefill_seconds(tokens, patches, self.num_running, now) or 0.0
        if limits.max_queued_seconds is not None:
            late = (self.wait_seconds(ticket, now) or 0.0) - limits.max_queued_seconds
            if late > 0:
                return late
        return None

    def _next_to_go(self, ticket: Ticket) -> Ticket | None:
        """The newest of the account with most, if that still has no less than the newcomer's."""
        others = [line for name, line in self._lines.items() if name != ticket.account]
        if not others:
            return None
        longest = max(others, key=lambda line: self._share(line.load) / line.weight)
        victim = next(reversed(longest.tickets))
        own = self._lines.get(ticket.account, _Line(ticket.weight)).load.plus(ticket.load)
        rest = self._share(longest.load.minus(victim.load)) / longest.weight
        return victim if rest >= self._share(own) / ticket.weight else None

    def _share(self, load: Load) -> float:
        """How much of the queue a load takes up, by the bound it is nearest to."""
        limits = self._limits
        bounds = (limits.max_queued_requests, limits.max_queued_tokens, limits.max_queued_patches)
        return max(
            amount / max(bound, 1)
            for amount, bound in zip(load, bounds, strict=True)
            if bound is not None
        )


def _excess(amount: int, bound: int | None) -> int:
    return 0 if bound is None else max(amount - bound, 0)
