"""What one caller has used of its quota, counted where all its requests arrive.

Buckets hold a minute's worth and fill steadily. A prompt is paid for when its request is taken;
answers are paid for as they come, which may leave a debt that the next request waits for. Debts
are kept in a slab of the ledger, so that they outlive the engine.
"""

from typing import NamedTuple

from inference.ledger import Counter, Family, Slab
from inference.quota import Quota, QuotaKind

_SECONDS_PER_MINUTE = 60.0
# Until one of a caller's own requests ends; nobody can say when.
_CONCURRENCY_RETRY_SECONDS = 1.0
_LEAST_RETRY_SECONDS = 0.05
# Sums of times are so inexact, and more.
_ROUNDING_SECONDS = 1e-6

# Of the kind that is not forgotten with its writer; no metric, so nobody is shown it.
_FULL_AT = Family(
    "counter", "quota_full_at", "When a bucket is full, on the monotonic clock.", ("of", "account")
)


class Excess(NamedTuple):
    """Which limit a request is over, and when it would not be."""

    quota: QuotaKind
    retry_after_seconds: float


class Bucket:
    """A bucket that fills at `per_minute`, to a minute's worth.

    All that is kept of it is when it will be full, on a clock that all processes share. One that is
    full already, as at 0, was full all the time since.
    """

    def __init__(self, per_minute: float, now: float, full_at: Counter) -> None:
        self._per_minute = per_minute
        self._now = now
        self._full_at = full_at

    def fill(self, per_minute: float, now: float) -> None:
        """Let time pass; the rate may be a new one, what is in it stays."""
        self._now = now
        if per_minute != self._per_minute:
            missing = self._seconds_to_full / self._seconds_to_fill(1)
            level = min(self._per_minute - missing, per_minute)
            self._per_minute = per_minute
            self._set_full_at(now + self._seconds_to_fill(per_minute - level))

    def seconds_until(self, amount: float) -> float:
        """Seconds until so much is in it; more than it holds counts as all it holds."""
        spare = self._per_minute - min(amount, self._per_minute)
        seconds = self._seconds_to_full - self._seconds_to_fill(spare)
        return seconds if seconds > _ROUNDING_SECONDS else 0.0

    def take(self, amount: float) -> None:
        """Take out, into debt if need be; a negative amount is given back."""
        self._set_full_at(self._now + self._seconds_to_full + self._seconds_to_fill(amount))

    @property
    def _seconds_to_full(self) -> float:
        return max(self._full_at.value - self._now, 0.0)

    def _seconds_to_fill(self, amount: float) -> float:
        return amount * _SECONDS_PER_MINUTE / self._per_minute

    def _set_full_at(self, full_at: float) -> None:
        self._full_at.add(full_at - self._full_at.value)


class QuotaMeter:
    """The buckets of one caller."""

    def __init__(self, account: str, slab: Slab) -> None:
        """slab: where they are kept, under the account's name."""
        self._account = account
        self._slab = slab
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None

    def excess(self, quota: Quota, num_requests: int, num_tokens: int, now: float) -> Excess | None:
        """Tell which limit one more request of so many tokens would be over; charges nothing.

        num_requests: the caller's that have been taken and not ended.
        """
        limit = quota.max_concurrent_requests
        if limit is not None and num_requests >= limit:
            return Excess("concurrent_requests", _CONCURRENCY_RETRY_SECONDS)
        self._requests = self._filled(self._requests, "requests", quota.requests_per_minute, now)
        self._tokens = self._filled(self._tokens, "tokens", quota.tokens_per_minute, now)
        if self._requests is not None and (wait := self._requests.seconds_until(1)):
            return Excess("requests", max(wait, _LEAST_RETRY_SECONDS))
        if self._tokens is not None and (wait := self._tokens.seconds_until(num_tokens)):
            return Excess("tokens", max(wait, _LEAST_RETRY_SECONDS))
        return None

    def charge(self, *, num_requests: int = 0, num_tokens: int = 0) -> None:
        """Pay for a request or tokens; negative numbers give back."""
        if self._requests is not None:
            self._requests.take(num_requests)
        if self._tokens is not None:
            self._tokens.take(num_tokens)

    @property
    def is_blank(self) -> bool:
        """It counts nothing; one that is made anew would be the same."""
        return self._requests is None and self._tokens is None

    def _filled(
        self, bucket: Bucket | None, of: QuotaKind, per_minute: float | None, now: float
    ) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, now, self._slab.counter(_FULL_AT, of, self._account))
        bucket.fill(per_minute, now)
        return bucket
