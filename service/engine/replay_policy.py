"""How far a worker goes for requests whose engine was lost."""

import msgspec


class ReplayPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long an unfinished request outlives engines.

    max_losses: engines a request may lose before it is a suspect, which the engine runs alone; 0
        is off: a loss fails it.
    max_losses_alone: engines a suspect may lose while nothing else runs; then it is the cause, and
        fails. More than one, because an engine can also be killed from outside.
    max_wait_seconds: for the next engine; then whatever waits fails.
    max_waiting: requests, kept and new, beyond which new ones are refused while there is none.
    """

    max_losses: int = 2
    max_losses_alone: int = 2
    max_wait_seconds: float = 120.0
    max_waiting: int = 64
