"""Fetches what http and https URLs of a request point at, without being turned against others.

Knows URLs, hosts and bytes; what the bytes are is told by those who decode them, never by a
Content-Type. The HTTP client is loaded with the first fetch.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import anyio
import structlog

from service.conversation import MediaKind
from service.errors import ClientError, ImageFetchTimeout, ImageRefused, TooLarge
from service.media.address import IPAddress
from service.media.budget import MediaLimits, check_file_bytes
from service.media.fetch_failure import FetchFailed, FetchVerdict
from service.media.fetch_rules import FetchRules, resolve
from service.media.fetch_settings import FetchSettings
from service.media.remote_url import RemoteUrl, UrlInvalid, parse_remote_url
from service.stages import milliseconds
from service.version import version

if TYPE_CHECKING:
    from httpcore2 import Response

_MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_LOOKUPS = 8
_MESSAGES = {
    FetchVerdict.SCHEME: "Only http: and https: URLs are fetched.",
    FetchVerdict.INVALID: "This is no URL that is fetched: http(s)://host/path, without user info.",
    FetchVerdict.REFUSED: "The URL cannot be reached, or may not be fetched.",
    FetchVerdict.FAILED: "The URL did not answer with a file.",
    FetchVerdict.TIMEOUT: "The URL took too long to answer.",
}

logger = structlog.get_logger()

Resolver = Callable[[str, int], Sequence[IPAddress]]


class RemoteFile(NamedTuple):
    """A URL as a client wrote it, the request field it came from, and what that field takes."""

    url: str
    param: str
    kinds: tuple[MediaKind, ...] = ("image",)


class _Wanted(NamedTuple):
    """The same, read."""

    url: RemoteUrl
    param: str
    kinds: tuple[MediaKind, ...]


class _Redirect(NamedTuple):
    """An answer that names another URL."""

    location: str


class _Trip:
    """One fetch under way: what is wanted, and where it is by now."""

    def __init__(self, wanted: _Wanted) -> None:
        self.wanted = wanted
        self.url = wanted.url
        self.num_redirects = 0
        self.started_at = time.perf_counter()


class _Budget:
    """What one request's fetches may take together; made when the first begins."""

    def __init__(self, settings: FetchSettings, limits: MediaLimits) -> None:
        self.slots = anyio.Semaphore(settings.max_request_fetches)
        self.deadline = anyio.current_time() + settings.fetch_total_seconds
        self._max_bytes = limits.max_total_bytes
        self._num_bytes = 0

    def take_bytes(self, num_bytes: int, param: str) -> None:
        """Count bytes as they come.

        Raises:
            TooLarge: `media_budget_exceeded`.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > self._max_bytes:
            raise TooLarge(
                "media_budget_exceeded",
                f"A request's images may have {self._max_bytes} bytes together.",
                param=param,
            )


class Fetcher:
    """Fetches for one worker: under the settings' limits, and only what may be asked."""

    def __init__(
        self, settings: FetchSettings, limits: MediaLimits, resolver: Resolver = resolve
    ) -> None:
        """Open nothing yet; resolver blocks, and gives a host's addresses."""
        self._settings = settings
        self._limits = limits
        self._resolver = resolver
        self._rules = FetchRules(settings)
        self._slots = anyio.Semaphore(settings.max_worker_fetches)
        # Own threads: names that do not resolve must not hold up other work.
        self._lookups = ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="resolver")
        self._system_trust: ssl.SSLContext | None = None
        self._user_agent = f"Loupe/{version()}"

    def close(self) -> None:
        """Let go of the resolver's threads."""
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def fetch_all(self, files: Sequence[RemoteFile]) -> list[bytes]:
        """Fetch a request's files side by side, equal ones once; in their order.

        Nothing is asked before every URL is found well-formed. The first failure ends the others.

        Raises:
            ImageRefused: `image_url_unsupported` where fetching is off, `image_url_scheme`,
                `image_url_invalid`, `image_url_refused`, `image_fetch_failed`.
            ImageFetchTimeout: one, or all together, took too long.
            TooLarge: `image_too_large`, `file_too_large` or, all together,
                `media_budget_exceeded`.
        """
        if not files:
            return []
        wanted: dict[object, _Wanted] = {}
        for file in files:
            url = self._read(file.url, file.param)
            wanted.setdefault(_place(file), _Wanted(url, file.param, file.kinds))
        budget = _Budget(self._settings, self._limits)
        fetched: dict[object, bytes] = {}
        failures: list[ClientError] = []

        async def fetch(place: object) -> None:
            try:
                fetched[place] = await self._fetch(wanted[place], budget)
            except ClientError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for place in wanted:
                tasks.start_soon(fetch, place)
        if failures:
            raise failures[0]
        return [fetched[_place(file)] for file in files]

    def _read(self, url: str, param: str) -> RemoteUrl:
        if not self._settings.fetch_urls:
            raise ImageRefused(
                "image_url_unsupported", "URLs are not fetched here; send the image.", param=param
            )
        try:
            return parse_remote_url(url)
        except UrlInvalid as fault:
            scheme = fault.has_foreign_scheme
            verdict = FetchVerdict.SCHEME if scheme else FetchVerdict.INVALID
            raise _to_error(verdict, param) from None

    async def _fetch(self, wanted: _Wanted, budget: _Budget) -> bytes:
        """Fetch one, and log how that went: hosts only, as a query may hold a secret."""
        trip = _Trip(wanted)
        verdict, reason, num_bytes = "fault", "", 0
        try:
            content = await self._in_time(trip, budget)
            verdict, num_bytes = "fetched", len(content)
        except FetchFailed as failure:
            verdict, reason = failure.verdict.value, failure.reason
            raise _to_error(failure.verdict, wanted.param) from None
        except ClientError as error:
            verdict = error.code
            raise
        except asyncio.CancelledError:
            verdict = "cancelled"
            raise
        else:
            return content
        finally:
            logger.info(
                "Image fetch",
                host=trip.url.host,
                verdict=verdict,
                reason=reason,
                num_bytes=num_bytes,
                num_redirects=trip.num_redirects,
                fetch_time_ms=milliseconds(time.perf_counter() - trip.started_at),
            )

    async def _in_time(self, trip: _Trip, budget: _Budget) -> bytes:
        try:
            with anyio.fail_after(budget.deadline - anyio.current_time()):
                async with budget.slots, self._slots:
                    with anyio.fail_after(self._settings.fetch_timeout_seconds):
                        return await self._follow(trip, budget)
        except TimeoutError:
            raise FetchFailed(FetchVerdict.TIMEOUT, "deadline") from None

    async def _follow(self, trip: _Trip, budget: _Budget) -> bytes:
        """Ask, and ask where that leads, each time as carefully."""
        while True:
            self._rules.check_url(trip.url)
            answer = await self._ask(trip, budget)
            if isinstance(answer, bytes):
                return answer
            if trip.num_redirects == _MAX_REDIRECTS:
                raise FetchFailed(FetchVerdict.REFUSED, "too many redirects")
            trip.num_redirects += 1
            trip.url = _followed(trip.url, answer)

    async def _ask(self, trip: _Trip, budget: _Budget) -> bytes | _Redirect:
        import httpcore2

        from service.media.dialer import Dialer

        url = trip.url
        target = httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
        connection = httpcore2.AsyncHTTPConnection(
            target.origin,
            ssl_context=await self._trust() if url.scheme == "https" else None,
            network_backend=Dialer(self._look_up),
        )
        try:
            async with (
                connection,
                connection.stream("GET", target, headers=self._headers(url)) as response,
            ):
                if response.status in _REDIRECTS:
                    return _Redirect(_location(response))
                return await self._read_file(response, trip.wanted, budget)
        except httpcore2.TimeoutException:
            raise FetchFailed(FetchVerdict.TIMEOUT, "network") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
            raise FetchFailed(FetchVerdict.FAILED, type(error).__name__) from None

    async def _read_file(self, response: "Response", wanted: _Wanted, budget: _Budget) -> bytes:
        if response.status != 200:
            raise FetchFailed(FetchVerdict.FAILED, f"status {response.status}")
        headers = _headers_of(response)
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise FetchFailed(FetchVerdict.FAILED, "compressed")  # what it unpacks to has no bound
        announced = headers.get(b"content-length", b"")
        if announced.isdigit():
            check_file_bytes(int(announced), wanted.param, wanted.kinds, self._limits)
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            check_file_bytes(len(content), wanted.param, wanted.kinds, self._limits)
            budget.take_bytes(len(chunk), wanted.param)
        return bytes(content)

    async def _look_up(self, host: str, port: int) -> Sequence[IPAddress]:
        loop = asyncio.get_running_loop()
        try:
            addresses = await loop.run_in_executor(self._lookups, self._resolver, host, port)
        except (OSError, UnicodeError):
            raise FetchFailed(FetchVerdict.REFUSED, "name not resolved") from None
        self._rules.check_addresses(host, addresses)
        return addresses

    def _headers(self, url: RemoteUrl) -> list[tuple[str, str]]:
        set_for_host = self._rules.headers_for(url)
        names = {name.lower() for name in set_for_host}
        usual = {
            "Host": url.host_header,
            "User-Agent": self._user_agent,
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        return [
            *((name, value) for name, value in usual.items() if name.lower() not in names),
            *set_for_host.items(),
        ]

    async def _trust(self) -> ssl.SSLContext:
        trust = self._system_trust
        if trust is None:
            # In a thread: the system's certificates take 50 ms to read.
            loop = asyncio.get_running_loop()
            trust = await loop.run_in_executor(None, ssl.create_default_context)
            self._system_trust = trust
        return trust


def _to_error(verdict: FetchVerdict, param: str) -> ImageRefused:
    timed_out = verdict == FetchVerdict.TIMEOUT
    return (ImageFetchTimeout if timed_out else ImageRefused)(
        verdict, _MESSAGES[verdict], param=param
    )


def _place(file: RemoteFile) -> object:
    """Make what equal files have in common."""
    return file.url, file.kinds


def _followed(url: RemoteUrl, redirect: _Redirect) -> RemoteUrl:
    try:
        followed = url.followed_to(redirect.location)
    except UrlInvalid:
        raise FetchFailed(FetchVerdict.REFUSED, "redirect to no URL") from None
    if url.scheme == "https" and followed.scheme != "https":
        raise FetchFailed(FetchVerdict.REFUSED, "redirect to http")
    return followed


def _location(response: "Response") -> str:
    location = _headers_of(response).get(b"location")
    if location is None:
        raise FetchFailed(FetchVerdict.FAILED, "redirect to nowhere")
    try:
        return location.decode("utf-8")
    except UnicodeDecodeError:
        raise FetchFailed(FetchVerdict.REFUSED, "redirect to no URL") from None


def _headers_of(response: "Response") -> Mapping[bytes, bytes]:
    return {name.lower(): value.strip() for name, value in response.headers}
