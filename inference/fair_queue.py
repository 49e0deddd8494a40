"""The sequences that wait, and whose turn is next: fair among callers, by the work done for them.

Every caller has an account of the work it was given, divided by its weight; the one with the least
is served next. Work counts when it is planned, not as it was guessed beforehand, so that
nobody gains by asking for long answers or loses by getting short ones. A caller that comes back
starts with the others' least: what it did not use while it was away is not saved up. That is the
virtual token counter of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024).

Between classes of priority the oldest sequence decides, a head start per class counted in: a class
waits, but not for ever. Plain Python over sequences; what a caller's own come to is their order.
"""

from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias

from inference.recent_work import RecentWork
from inference.sequence import Request, Sequence, put_in_order, take_out

# What work costs, in prompt tokens. A decoded token takes a row of a step of its own. Four patches
# make a prompt token, and take the encoder about as long as that takes the decoder.
_COST_OF_OUTPUT_TOKEN = 2.0
_COST_OF_PATCH = 0.25

_MAX_ACCOUNTS = 1024

# A class of priority and an account.
Line: TypeAlias = tuple[int, str]


class FairQueue:
    """Lines of waiting sequences, one for each class and account, and what is on the accounts.

    now: on the engine's clock; whoever plans a step sets it before.
    """

    def __init__(self) -> None:
        self._lines: dict[Line, list[Sequence]] = {}
        self._accounts: dict[str, float] = {}
        self._last_served = ""
        self._recent = RecentWork()
        self.now = 0.0

    def __len__(self) -> int:
        """Count the waiting sequences."""
        return sum(map(len, self._lines.values()))

    def __bool__(self) -> bool:
        """Tell whether any wait."""
        return bool(self._lines)

    def __iter__(self) -> Iterator[Sequence]:
        """Give all waiting sequences, line by line."""
        for line in self._lines.values():
            yield from line

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait, in its own line, in its place by rank."""
        account = sequence.request.account
        if not any(waiting == account for _, waiting in self._lines):
            self._open_account(account)
        put_in_order(self._lines.setdefault(line_of(sequence), []), sequence)

    def remove(self, sequence: Sequence) -> None:
        """Let a sequence wait no more."""
        key = line_of(sequence)
        line = self._lines[key]
        take_out(line, sequence)
        if not line:
            del self._lines[key]

    def next(self, is_ready: Callable[[Sequence], bool]) -> Sequence | None:
        """Tell whose turn it is among those that are ready; the sequence goes on waiting."""
        heads = [
            head for line in self._lines.values() if (head := next(filter(is_ready, line), None))
        ]
        if not heads:
            return None
        priority = min(heads, key=lambda head: head.order).request.priority
        return min(
            (head for head in heads if head.request.priority == priority),
            key=lambda head: (self._accounts[head.request.account], head.order),
        )

    def light_lines(self, running: Collection[Sequence]) -> set[Line]:
        """Name the lines of whoever was given little of late beside another that is here.

        running: those that wait no more; they count as well. Only the most urgent class that is
        here has light lines: nobody of another is to be served before it.
        """
        lines = self._lines.keys() | {line_of(sequence) for sequence in running}
        if len(lines) < 2:
            return set()
        urgent = min(priority for priority, _ in lines)
        accounts = {account for priority, account in lines if priority == urgent}
        return {(urgent, account) for account in self._recent.light_ones(accounts, self.now)}

    def charge_tokens(self, request: Request, start: int, end: int) -> None:
        """Count tokens [start, end) of a sequence as work done for its caller."""
        prompt = len(request.prompt_token_ids)
        num_output = max(end, prompt) - max(start, prompt)
        self._charge(request, (end - start) + (_COST_OF_OUTPUT_TOKEN - 1.0) * num_output)

    def charge_patches(self, request: Request, num_patches: int) -> None:
        """Count the encoding of a picture as work done for its caller."""
        self._charge(request, _COST_OF_PATCH * num_patches)

    def _charge(self, request: Request, cost: float) -> None:
        account = request.account
        self._accounts[account] = self._accounts.get(account, 0.0) + cost / request.weight
        self._last_served = account
        self._recent.add(account, cost / request.weight, self.now)

    def _open_account(self, account: str) -> None:
        waiting = {name for _, name in self._lines}
        least = min(
            (self._accounts[name] for name in waiting),
            default=self._accounts.get(self._last_served, 0.0),
        )
        if len(self._accounts) >= _MAX_ACCOUNTS:
            # Whoever has no more than the least would be brought up to it anyway.
            self._accounts = {
                name: account
                for name, account in self._accounts.items()
                if name in waiting or account > least
            }
        self._accounts[account] = max(self._accounts.get(account, 0.0), least)


def line_of(sequence: Sequence) -> Line:
    """Tell among whom a sequence waits."""
    return sequence.request.priority, sequence.request.account
