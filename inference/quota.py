"""What one caller may use of the engine; a leaf."""

from typing import Literal, TypeAlias

import msgspec


class Quota(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one caller may use, as its key's entry says; None is without limit.

    max_concurrent_requests: taken and not ended.
    requests_per_minute, tokens_per_minute: averages, of which a minute's worth may come at once.
        Tokens are the prompt's, charged when a request is taken, and the answers', as they come.
        Above 0.
    weight: its share of a busy engine, next to callers of weight 1; above 0.
    """

    max_concurrent_requests: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    weight: float = 1.0


QuotaKind: TypeAlias = Literal["concurrent_requests", "requests", "tokens"]
