"""The gate: who is let into the queue, who is turned away, and when to come back.

Every request of every worker passes here, on the thread that read it, so that a refusal does not
wait for the step that runs; and all quotas are counted here, because it is the one place that sees
all requests of a caller. Knows counts, times and accounts, never a sequence.
"""

import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from inference.backlog import Backlog, Load, Ticket
from inference.foresight import Foresight
from inference.ledger import Slab, private_slab
from inference.pace import Pace
from inference.protocol import Generate, Limits, RefusalCode, Refused
from inference.quota import Quota
from inference.quota_meter import QuotaMeter
from inference.spans import VisualLayout, num_patches

_LEAST_RETRY_SECONDS = 1.0
_MOST_RETRY_SECONDS = 60.0
_NO_QUOTA = Quota()


@dataclass(slots=True, eq=False)
class _Account:
    """What is counted of one account. num_requests: let in and not ended."""

    meter: QuotaMeter
    num_requests: int = 0


class GateFigures(NamedTuple):
    """What the statistics show of the gate.

    predicted_wait_seconds: for a newcomer that waits for everything before it.
    """

    queued: Load
    predicted_wait_seconds: float
    num_refused: dict[RefusalCode, int]


class Gate:
    """Counts what is in the engine; every method may be called from any thread.

    num_displaced: tickets that have lost their place and are not given up yet.
    """

    def __init__(
        self,
        limits: Limits,
        layout: VisualLayout,
        *,
        is_memory_short: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        """Open the gate; `clock` is the engine's."""
        self._layout = layout
        self._is_memory_short = is_memory_short
        self._clock = clock
        self._lock = threading.Lock()
        self._pace = Pace(
            max_num_batched_tokens=limits.max_num_batched_tokens,
            max_num_encoded_patches=limits.max_num_encoded_patches,
        )
        self._backlog = Backlog(limits, self._pace)
        self._foresight = Foresight()
        self._accounts: dict[str, _Account] = {}
        self._slab = private_slab()
        self._num_refused: Counter[RefusalCode] = Counter()
        self._is_draining = False
        self.num_displaced = 0

    def keep_quotas_in(self, slab: Slab) -> None:
        """Have what callers have used outlive this process; before anybody asks.

        slab: to which no other thread adds a series from now on.
        """
        self._slab = slab

    def admit(self, generate: Generate) -> Ticket | Refused:
        """Let a request in or turn it away, at once."""
        is_memory_short = self._is_memory_short()
        with self._lock:
            now = self._clock()
            ticket = self._write_ticket(generate, now)
            account = self._account(ticket.account)
            refused = self._judge(ticket, account, now, is_memory_short=is_memory_short)
            if refused is not None:
                self._num_refused[refused.code] += 1
                self._forget_if_idle(ticket.account)
                return refused
            ticket.predicted_seconds = self._predict(ticket, now)
            self._backlog.add(ticket)
            account.num_requests += 1
            if not generate.is_replay:
                num_tokens = len(generate.prompt_token_ids)
                account.meter.charge(num_requests=1, num_tokens=num_tokens)
            return ticket

    def begin(self, ticket: Ticket) -> None:
        """Note that one of its sequences runs: it is not in the queue any more."""
        if ticket.has_begun:
            return
        with self._lock:
            ticket.has_begun = True
            if ticket.is_displaced:
                # Too late to give it up: the queue is over its bound by this one.
                ticket.is_displaced = False
                self.num_displaced -= 1
            else:
                self._backlog.remove(ticket)
            self._backlog.num_running += ticket.num_open

    def end(self, ticket: Ticket, num_sequences: int = 1) -> None:
        """Note that so many of its sequences have ended; a prompt that never ran is not charged."""
        with self._lock:
            ticket.num_open -= num_sequences
            if ticket.has_begun:
                self._backlog.num_running -= num_sequences
            if ticket.num_open:
                return
            generate = ticket.generate
            self._learn_end(ticket)
            account = self._accounts[ticket.account]
            account.num_requests -= 1
            if not ticket.has_begun:
                if ticket.is_displaced:
                    self.num_displaced -= 1
                else:
                    self._backlog.remove(ticket)
                if not generate.is_replay:
                    account.meter.charge(num_tokens=-len(generate.prompt_token_ids))
            self._forget_if_idle(ticket.account)

    def charge(self, num_tokens: Mapping[str, int]) -> None:
        """Charge output tokens to their accounts."""
        with self._lock:
            for name, count in num_tokens.items():
                if (account := self._accounts.get(name)) is not None:
                    account.meter.charge(num_tokens=count)

    def learn_step(
        self, *, num_decodes: int, num_prefill_tokens: int, num_rows: int, seconds: float
    ) -> None:
        """Take in a step's time; num_rows: sequences that find room to run, as it showed."""
        with self._lock:
            self._backlog.num_rows = num_rows
            self._pace.learn_step(
                num_decodes=num_decodes,
                num_prefill_tokens=num_prefill_tokens,
                seconds=seconds,
                now=self._clock(),
            )

    def learn_encoding(self, num_patches: int, seconds: float) -> None:
        """Take in the time to encode pictures of so many patches."""
        with self._lock:
            self._pace.learn_encoding(num_patches, seconds, self._clock())

    def learn_answer(self, num_tokens: int, *, is_whole: bool) -> None:
        """Take in the length of an answer; not whole: it would have been longer."""
        with self._lock:
            self._pace.learn_answer(num_tokens, is_whole=is_whole)

    def forget_pace(self) -> None:
        """Predict nothing before something new is measured."""
        with self._lock:
            self._pace.forget()

    def drain(self) -> None:
        """Turn everything away from now on; what is in stays."""
        self._is_draining = True

    def figures(self) -> GateFigures:
        """The figures of now."""
        with self._lock:
            return GateFigures(
                self._backlog.load,
                self._backlog.longest_wait_seconds(self._clock()),
                dict(self._num_refused),
            )

    def _write_ticket(self, generate: Generate, now: float) -> Ticket:
        seconds = generate.deadline_seconds
        return Ticket(
            generate=generate,
            weight=(generate.quota or _NO_QUOTA).weight,
            arrival_time=now,
            deadline=math.inf if seconds is None else now + seconds,
            num_patches=sum(num_patches(vision, self._layout) for vision in generate.visions),
            num_open=generate.num_sequences,
        )

    def _judge(
        self, ticket: Ticket, account: _Account, now: float, *, is_memory_short: bool
    ) -> Refused | None:
        """Look for a reason to refuse; without one, the ticket has a place to go to."""
        if self._is_draining:
            return _refusal(ticket, RefusalCode.DRAINING)
        if not ticket.generate.is_replay and (refused := _over_quota(ticket, account, now)):
            return refused
        if is_memory_short:
            return _refusal(ticket, RefusalCode.OVERLOADED, _LEAST_RETRY_SECONDS)
        late = self._seconds_late(ticket, now)
        if late > 0:
            return _refusal(ticket, RefusalCode.DEADLINE_UNREACHABLE, late)
        displaced = self._backlog.make_room(ticket, now)
        if not isinstance(displaced, list):
            return _refusal(ticket, RefusalCode.OVERLOADED, displaced)
        for other in displaced:
            other.is_displaced = True
        self.num_displaced += len(displaced)
        self._num_refused[RefusalCode.OVERLOADED] += len(displaced)
        return None

    def _seconds_late(self, ticket: Ticket, now: float) -> float:
        """Predict how far behind its deadline a request would end."""
        seconds = self._predict(ticket, now)
        if seconds is None or ticket.deadline <= now or ticket.generate.is_replay:
            return 0.0  # whose time is over is ended, not refused; so is what was let in once
        if self._backlog.num_running or self._backlog.load.num_sequences:
            seconds = self._foresight.expect(seconds, now)
        return now + seconds - ticket.deadline

    def _predict(self, ticket: Ticket, now: float) -> float | None:
        """Seconds until a newcomer has ended, as far as steps tell; None: nobody knows."""
        wait = self._backlog.wait_seconds(ticket, now)
        return None if wait is None else wait + self._backlog.own_seconds(ticket, now)

    def _learn_end(self, ticket: Ticket) -> None:
        # A replay waits for whatever else the lost engine had.
        if ticket.predicted_seconds is None or ticket.generate.is_replay:
            return
        now = self._clock()
        self._foresight.learn(ticket.predicted_seconds, now - ticket.arrival_time, now)

    def _account(self, name: str) -> _Account:
        if name not in self._accounts:
            self._accounts[name] = _Account(QuotaMeter(name, self._slab))
        return self._accounts[name]

    def _forget_if_idle(self, name: str) -> None:
        account = self._accounts[name]
        if not account.num_requests and account.meter.is_blank:
            del self._accounts[name]


def _over_quota(ticket: Ticket, account: _Account, now: float) -> Refused | None:
    generate = ticket.generate
    excess = account.meter.excess(
        generate.quota or _NO_QUOTA, account.num_requests, len(generate.prompt_token_ids), now
    )
    return excess and Refused(
        request_id=generate.request_id,
        code=RefusalCode.RATE_LIMITED,
        retry_after_seconds=excess.retry_after_seconds,
        quota=excess.quota,
    )


def _refusal(ticket: Ticket, code: RefusalCode, seconds: float | None = None) -> Refused:
    if seconds is not None:
        seconds = min(max(seconds, _LEAST_RETRY_SECONDS), _MOST_RETRY_SECONDS)
    return Refused(request_id=ticket.generate.request_id, code=code, retry_after_seconds=seconds)
