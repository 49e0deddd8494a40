"""What one caller has used of its quota, counted where all its requests arrive.

Buckets hold a minute's worth and fill steadily. A prompt is paid for when its request is taken;
answers are paid for as they come, which may leave a debt that the next request waits for.
"""

from typing import NamedTuple

from inference.quota import Quota, QuotaKind

_SECONDS_PER_MINUTE = 60.0
# Until one of a caller's own requests ends; nobody can say when.
_CONCURRENCY_RETRY_SECONDS = 1.0
_LEAST_RETRY_SECONDS = 0.05


class Excess(NamedTuple):
    """Which limit a request is over, and when it would not be."""

    quota: QuotaKind
    retry_after_seconds: float


class Bucket:
    """A bucket that fills at `per_minute`, to a minute's worth; starts full."""

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_minute = per_minute
        self._level = per_minute
        self._filled_time = now

    def fill(self, per_minute: float, now: float) -> None:
        """Add what has flowed in since the last time; the rate may be a new one."""
        inflow = (now - self._filled_time) * per_minute / _SECONDS_PER_MINUTE
        self._level = min(self._level + inflow, per_minute)
        self._per_minute = per_minute
        self._filled_time = now

    def seconds_until(self, amount: float) -> float:
        """Seconds until so much is in it; more than it holds counts as all it holds."""
        missing = min(amount, self._per_minute) - self._level
        return max(missing, 0.0) * _SECONDS_PER_MINUTE / self._per_minute

    def take(self, amount: float) -> None:
        """Take out, into debt if need be; a negative amount is given back."""
        self._level -= amount


class QuotaMeter:
    """The buckets of one caller."""

    def __init__(self) -> None:
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None

    def excess(self, quota: Quota, num_requests: int, num_tokens: int, now: float) -> Excess | None:
        """Tell which limit one more request of so many tokens would be over; charges nothing.

        num_requests: the caller's that have been taken and not ended.
        """
        limit = quota.max_concurrent_requests
        if limit is not None and num_requests >= limit:
            return Excess("concurrent_requests", _CONCURRENCY_RETRY_SECONDS)
        self._requests = _filled(self._requests, quota.requests_per_minute, now)
        self._tokens = _filled(self._tokens, quota.tokens_per_minute, now)
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


def _filled(bucket: Bucket | None, per_minute: float | None, now: float) -> Bucket | None:
    if per_minute is None:
        return None
    if bucket is None:
        return Bucket(per_minute, now)
    bucket.fill(per_minute, now)
    return bucket
