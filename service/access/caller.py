"""Who asks: a name, whose data it may see, and how much it may ask for. It knows no keys."""

from typing import NamedTuple

from inference.quota import Quota


class KeyLimits(NamedTuple):
    """What one key may use; None is no bound of its own.

    max_concurrency: unfinished requests. requests_per_minute, tokens_per_minute: over all workers;
    tokens are a prompt's and its answer's. weight: its share of a busy engine, against the others'
    of its priority. priority: lower runs first.
    """

    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    weight: float = 1.0
    priority: int = 0


class Caller(NamedTuple):
    """Who sent a request.

    name: the key's name, for logs and figures; empty for anyone where no keys are set.
    tenant: callers of one tenant share files and cached work, and see nothing of other tenants.
    """

    name: str
    tenant: str
    is_admin: bool
    limits: KeyLimits = KeyLimits()


ANYONE = Caller("", "", is_admin=False)


def quota_of(caller: Caller) -> Quota | None:
    """Write a caller's limits as the engine counts them, for all workers; None: there are none."""
    limits = caller.limits
    if limits._replace(priority=0) == KeyLimits():
        return None
    return Quota(
        max_concurrent_requests=limits.max_concurrency,
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        weight=limits.weight,
    )
