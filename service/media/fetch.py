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

from service.errors import ClientError, ImageFetchTimeout, ImageRefused, TooLarge
from service.media.address import IPAddress
from service.media.budget import MediaLimits
from service.media.fetch_failure import FetchFailed, FetchVerdict
from service.media.fetch_settings import FetchSettings
from service.media.fetch_rules import FetchRules, resolve
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


class _Wanted(NamedTuple):
    """A URL to fetch, and the request field it came from."""

    url: RemoteUrl
    param: str


class _Redirect(NamedTuple):
    """An answer that names another URL."""

    location: str


class _Trip:
    """One fetch under way: where it is, for the log."""

    def __init__(self, url: RemoteUrl) -> None:
        self.url = url
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

    async def fetch_all(self, urls: Sequence[tuple[str, str]]) -> list[bytes]:
        """Fetch a request's (url, param) pairs side by side, equal ones once; in their order.

        Nothing is asked before every URL is found well-formed. The first failure ends the others.

        Raises:
            ImageRefused: `image_url_unsupported` where fetching is off, `image_url_scheme`,
                `image_url_invalid`, `image_url_refused`, `image_fetch_failed`.
            ImageFetchTimeout: one, or all together, took too long.
            TooLarge: `image_too_large` or, all together, `media_budget_exceeded`.
        """
        if not urls:
            return []
        wanted: dict[str, _Wanted] = {}
        for url, param in urls:
            wanted.setdefault(url, _Wanted(self._read(url, param), param))
        budget = _Budget(self._settings, self._limits)
        fetched: dict[str, bytes] = {}
        failures: list[ClientError] = []

        async def fetch(url: str) -> None:
            try:
                fetched[url] = await self._fetch(wanted[url], budget)
            except ClientError as error:
                failures.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for url in wanted:
                tasks.start_soon(fetch, url)
        if failures:
            raise failures[0]
        return [fetched[url] for url, _ in urls]

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
            raise self._to_error(verdict, param) from None

    async def _fetch(self, wanted: _Wanted, budget: _Budget) -> bytes:
        """Fetch one, and log how that went: hosts only, as a query may hold a secret."""
        trip = _Trip(wanted.url)
        verdict, reason, num_bytes = "fetched", "", 0
        try:
            content = await self._in_time(trip, budget, wanted.param)
            num_bytes = len(content)
        except FetchFailed as failure:
            verdict, reason = failure.verdict.value, failure.reason
            raise self._to_error(failure.verdict, wanted.param) from None
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

    async def _in_time(self, trip: _Trip, budget: _Budget, param: str) -> bytes:
        try:
            with anyio.fail_after(budget.deadline - anyio.current_time()):
                async with budget.slots, self._slots:
                    with anyio.fail_after(self._settings.fetch_timeout_seconds):
                        return await self._follow(trip, budget, param)
        except TimeoutError:
            raise FetchFailed(FetchVerdict.TIMEOUT, "deadline") from None

    async def _follow(self, trip: _Trip, budget: _Budget, param: str) -> bytes:
        """Ask, and ask where that leads, each time as carefully."""
        while True:
            self._rules.check_url(trip.url)
            answer = await self._ask(trip.url, budget, param)
            if isinstance(answer, bytes):
                return answer
            if trip.num_redirects == _MAX_REDIRECTS:
                raise FetchFailed(FetchVerdict.REFUSED, "too many redirects")
            trip.num_redirects += 1
            trip.url = _followed(trip.url, answer)

    async def _ask(self, url: RemoteUrl, budget: _Budget, param: str) -> bytes | _Redirect:
        import httpcore2

        from service.media.dialer import Dialer

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
                return await self._read_file(response, budget, param)
        except httpcore2.TimeoutException:
            raise FetchFailed(FetchVerdict.TIMEOUT, "network") from None
        except (httpcore2.NetworkError, httpcore2.ProtocolError, ssl.SSLError) as error:
            raise FetchFailed(FetchVerdict.FAILED, type(error).__name__) from None

    async def _read_file(self, response: "Response", budget: _Budget, param: str) -> bytes:
        if response.status != 200:
            raise FetchFailed(FetchVerdict.FAILED, f"status {response.status}")
        headers = _headers_of(response)
        if headers.get(b"content-encoding", b"identity").lower() not in (b"identity", b""):
            raise FetchFailed(FetchVerdict.FAILED, "compressed")  # what it unpacks to has no bound
        announced = headers.get(b"content-length", b"")
        max_bytes = self._limits.max_image_bytes
        if announced.isdigit() and int(announced) > max_bytes:
            raise FetchFailed(FetchVerdict.TOO_LARGE, "announced")
        content = bytearray()
        async for chunk in response.aiter_stream():
            content += chunk
            if len(content) > max_bytes:
                raise FetchFailed(FetchVerdict.TOO_LARGE, "counted")
            budget.take_bytes(len(chunk), param)
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
        return [
            ("Host", url.host_header),
            ("User-Agent", self._user_agent),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
            *self._rules.headers_for(url).items(),
        ]

    async def _trust(self) -> ssl.SSLContext:
        trust = self._system_trust
        if trust is None:
            # In a thread: the system's certificates take 50 ms to read.
            loop = asyncio.get_running_loop()
            trust = await loop.run_in_executor(None, ssl.create_default_context)
            self._system_trust = trust
        return trust

    def _to_error(self, verdict: FetchVerdict, param: str) -> ClientError:
        match verdict:
            case FetchVerdict.TOO_LARGE:
                message = f"An image may have {self._limits.max_image_bytes} bytes."
                return TooLarge(verdict, message, param=param)
            case FetchVerdict.TIMEOUT:
                return ImageFetchTimeout(verdict, _MESSAGES[verdict], param=param)
            case _:
                return ImageRefused(verdict, _MESSAGES[verdict], param=param)


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
