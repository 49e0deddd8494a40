"""Opens connections for the HTTP client, to checked addresses only.

Whatever the client dials passes here, so that the address that was checked is the one that is
asked: a name that resolves otherwise the next moment changes nothing. Loaded with the first fetch.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import cast

import httpcore2

from service.media.address import IPAddress
from service.media.fetch_failure import FetchFailed, FetchVerdict

_CONNECT_SECONDS = 3.0
_MAX_ADDRESSES = 3

Lookup = Callable[[str, int], Awaitable[Sequence[IPAddress]]]


class Dialer(httpcore2.AsyncNetworkBackend):
    """Connects to the first of a host's addresses that answers.

    lookup: resolves a host, and raises FetchFailed if it is not to be dialled.
    """

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        # The class has two definitions, of which the second is for want of anyio.
        self._backend = cast("httpcore2.AsyncNetworkBackend", httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the client's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve, check and connect; the time allowed is the caller's to end.

        Raises:
            FetchFailed: REFUSED, or TIMEOUT if the last address was silent.
        """
        failure = FetchFailed(FetchVerdict.REFUSED, "no address")
        for address in (await self._lookup(host, port))[:_MAX_ADDRESSES]:
            try:
                return await self._backend.connect_tcp(str(address), port, _CONNECT_SECONDS)
            except httpcore2.ConnectError:
                failure = FetchFailed(FetchVerdict.REFUSED, "no connection")
            except httpcore2.ConnectTimeout:
                failure = FetchFailed(FetchVerdict.TIMEOUT, "connecting")
        raise failure
