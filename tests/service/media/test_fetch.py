"""Fetching from real servers on loopback, which count who comes."""

import asyncio
import contextlib
import shlex
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from ipaddress import ip_address
from pathlib import Path

import anyio
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from service.error_codes import ERROR_CODES
from service.errors import ImageFetchTimeout, ServiceError
from service.media.budget import MediaLimits
from service.media.fetch import Fetcher, RemoteFile
from service.media.fetch_failure import FetchVerdict
from service.media.fetch_settings import FetchSettings

PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
LIMITS = MediaLimits(max_image_bytes=100_000, max_total_bytes=150_000)
REFUSED = "The URL cannot be reached, or may not be fetched."

Answer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """The event loop that the service runs on."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(autouse=True)
def log():
    with structlog.testing.capture_logs() as events:
        yield events


class Origin:
    """A server that answers by path. hits: connections it took. heads: what it was asked."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.is_closing = False
        self.hits = 0
        self.heads: list[str] = []
        self.answers: dict[str, Answer] = {}
        self.left = asyncio.Event()
        self._visits: set[asyncio.Task[None] | None] = set()

    def url(self, path: str = "/x.png", *, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.hits += 1
        self._visits.add(asyncio.current_task())
        # To be cancelled would be logged as an error by the streams' own callback.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            answer = self.answers.get(head.split()[1], replied(b"", "404 Not Found"))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(writer)
                await reader.read()
                self.left.set()
        if self.is_closing:
            writer.transport.abort()
        writer.close()

    async def close(self) -> None:
        self.is_closing = True
        visits = [visit for visit in self._visits if visit is not None]
        for visit in visits:
            visit.cancel()
        await asyncio.gather(*visits)


def replied(body: bytes, status: str = "200 OK", **headers: str) -> bytes:
    lines = {"Content-Length": str(len(body)), "Content-Type": "image/png"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{text}\r\n".encode() + body


def redirected(location: str, status: str = "302 Found") -> bytes:
    return replied(b"", status, Location=location)


@contextlib.asynccontextmanager
async def serving(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None):
    origin = Origin(0)
    server = await asyncio.start_server(origin.serve, host, 0, ssl=tls)
    origin.port = server.sockets[0].getsockname()[1]
    origin.answers["/x.png"] = replied(PICTURE)
    try:
        yield origin
    finally:
        server.close()
        await origin.close()


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as served:
        yield served


def settings_for(*origins: Origin, **settings: object) -> FetchSettings:
    chosen = {
        "fetch_private_hosts": ("127.0.0.1",),
        "fetch_ports": tuple(each.port for each in origins) or (80, 443),
        **settings,
    }
    return FetchSettings(**chosen)


async def fetch(settings: FetchSettings, *urls: str, resolver=None) -> list[bytes]:
    with contextlib.closing(
        Fetcher(settings, LIMITS, resolver) if resolver else Fetcher(settings, LIMITS)
    ) as fetcher:
        files = [RemoteFile(url, f"images[{i}]") for i, url in enumerate(urls)]
        return await fetcher.fetch_all(files)


async def refusal(settings: FetchSettings, *urls: str, resolver=None) -> ServiceError:
    with pytest.raises(ServiceError) as error:
        await fetch(settings, *urls, resolver=resolver)
    return error.value


def test_every_verdict_is_a_code_of_the_service():
    assert set(FetchVerdict) <= set(ERROR_CODES)


async def test_a_picture_is_fetched(origin, log):
    contents = await fetch(settings_for(origin), origin.url("/x.png"))

    assert contents == [PICTURE]
    assert origin.hits == 1
    head = origin.heads[0].lower()
    assert head.startswith("get /x.png http/1.1\r\n")
    assert f"host: 127.0.0.1:{origin.port}\r\n" in head
    assert "user-agent: loupe/" in head
    assert "accept-encoding: identity\r\n" in head
    assert "cookie" not in head
    assert "authorization" not in head


async def test_the_log_tells_the_host_and_the_verdict_alone(origin, log):
    origin.answers["/secret?signature=secret"] = replied(PICTURE)

    await fetch(settings_for(origin), origin.url("/secret?signature=secret"))

    [event] = [event for event in log if event["event"] == "Image fetch"]
    assert event["host"] == "127.0.0.1"
    assert event["verdict"] == "fetched"
    assert event["num_bytes"] == len(PICTURE)
    assert "secret" not in repr(log)


async def test_pictures_come_in_order_and_equal_urls_are_asked_once(origin):
    for place in range(6):
        origin.answers[f"/{place}"] = replied(bytes([place]) * 10)

    places = [5, 3, 3, 0, 1, 5, 2]
    contents = await fetch(settings_for(origin), *[origin.url(f"/{place}") for place in places])

    assert contents == [bytes([place]) * 10 for place in places]
    assert origin.hits == 5


async def test_no_more_are_fetched_at_once_than_set(origin):
    running: set[int] = set()
    most: list[int] = []

    async def slow(writer: asyncio.StreamWriter) -> None:
        running.add(id(writer))
        most.append(len(running))
        await asyncio.sleep(0.02)
        running.discard(id(writer))
        writer.write(replied(PICTURE[:100]))
        await writer.drain()
        writer.close()

    origin.answers |= {f"/{place}": slow for place in range(9)}

    await fetch(
        settings_for(origin, max_request_fetches=3), *[origin.url(f"/{i}") for i in range(9)]
    )

    assert max(most) == 3


LOOPBACKS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0x7f.1",
    "①②⑦.0.0.1",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "0.0.0.0",
    "0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[::127.0.0.1]",
]


@pytest.mark.parametrize("host", LOOPBACKS)
async def test_no_spelling_of_loopback_is_asked(origin, host):
    settings = settings_for(origin, fetch_private_hosts=())

    error = await refusal(settings, origin.url(host=host))

    assert (error.code, error.message) == ("image_url_refused", REFUSED)
    assert error.param == "images[0]"
    assert origin.hits == 0


@pytest.mark.parametrize(
    "host",
    [
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fd00::1]",
        "[fe80::1]",
        "[64:ff9b:1::1]",
        "[2002:7f00:1::]",
        "224.0.0.1",
    ],
)
async def test_no_private_address_is_asked(host):
    error = await refusal(FetchSettings(), f"http://{host}/latest/meta-data")

    assert (error.code, error.message) == ("image_url_refused", REFUSED)


async def test_one_private_answer_refuses_the_name(origin):
    def resolver(host: str, port: int):
        return [ip_address("93.184.215.14"), ip_address("127.0.0.1")]

    settings = settings_for(origin, fetch_private_hosts=())
    error = await refusal(settings, origin.url(host="a.example"), resolver=resolver)

    assert error.code == "image_url_refused"
    assert origin.hits == 0


@given(st.lists(st.ip_addresses(), min_size=1, max_size=3))
async def test_whatever_a_name_resolves_to_nothing_private_is_asked(addresses):
    private = [address for address in addresses if not address.is_global]
    if not private:
        return

    error = await refusal(
        FetchSettings(), "http://a.example/", resolver=lambda host, port: addresses
    )

    assert error.code == "image_url_refused"


async def test_a_name_is_resolved_once_and_what_was_checked_is_asked(origin):
    answers = [[ip_address("127.0.0.1")], [ip_address("127.0.0.2")]]

    contents = await fetch(
        settings_for(origin),
        origin.url(host="a.example"),
        resolver=lambda host, port: answers.pop(0),
    )

    assert contents == [PICTURE]
    assert len(answers) == 1
    assert f"Host: a.example:{origin.port}\r\n" in origin.heads[0]


async def test_a_name_that_turns_private_on_the_way_is_refused(origin):
    """Each hop is checked again, also where the name stays."""
    answers = [[ip_address("127.0.0.1")], [ip_address("127.0.0.2")]]
    origin.answers["/go"] = redirected("/x.png")

    error = await refusal(
        settings_for(origin),
        origin.url("/go", host="a.example"),
        resolver=lambda host, port: answers.pop(0),
    )

    assert error.code == "image_url_refused"
    assert origin.hits == 1


async def test_a_redirect_to_a_private_address_is_refused(origin):
    async with serving("127.0.0.2") as inner:
        origin.answers["/go"] = redirected(inner.url(host="127.0.0.2"))

        error = await refusal(settings_for(origin, inner), origin.url("/go"))

        assert (error.code, error.message) == ("image_url_refused", REFUSED)
        assert inner.hits == 0


async def test_redirects_are_followed_three_times(origin):
    for place in range(3):
        status = ("301 Moved Permanently", "307 Temporary Redirect", "308 Permanent Redirect")
        origin.answers[f"/{place}"] = redirected(f"/{place + 1}", status[place])
    origin.answers["/3"] = replied(PICTURE)

    assert await fetch(settings_for(origin), origin.url("/0")) == [PICTURE]


async def test_a_redirect_loop_ends(origin):
    origin.answers["/loop"] = redirected("/loop")

    error = await refusal(settings_for(origin), origin.url("/loop"))

    assert error.code == "image_url_refused"
    assert origin.hits == 4


@pytest.mark.parametrize(
    "location",
    ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "http://[", "/a\tb"],
)
async def test_a_redirect_to_no_url_is_refused(origin, location):
    origin.answers["/go"] = redirected(location)

    error = await refusal(settings_for(origin), origin.url("/go"))

    assert error.code == "image_url_refused"
    assert origin.hits == 1


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc/passwd", "image_url_scheme"),
        ("ftp://127.0.0.1/x", "image_url_scheme"),
        ("gopher://127.0.0.1/x", "image_url_scheme"),
        ("http://u@127.0.0.1/", "image_url_invalid"),
        ("http://127.0.0.1/a b", "image_url_invalid"),
        ("x.png", "image_url_invalid"),
    ],
)
async def test_a_bad_url_keeps_the_others_from_being_asked(origin, url, code):
    error = await refusal(settings_for(origin), origin.url(), url)

    assert (error.code, error.param) == (code, "images[1]")
    assert origin.hits == 0


@pytest.mark.parametrize(
    ("settings", "host"),
    [
        pytest.param({"fetch_denied_hosts": ("127.0.0.1",)}, "127.0.0.1", id="denied"),
        pytest.param({"fetch_denied_hosts": ("*.example",)}, "a.example", id="denied-below"),
        pytest.param({"fetch_allowed_hosts": ("b.example",)}, "a.example", id="not-allowed"),
        pytest.param(
            {"fetch_allowed_hosts": ("a.example",), "fetch_denied_hosts": ("a.example",)},
            "a.example",
            id="denied-and-allowed",
        ),
        pytest.param({"fetch_ports": (80, 443)}, "127.0.0.1", id="port"),
    ],
)
async def test_what_the_settings_forbid_is_not_asked(origin, settings, host):
    error = await refusal(
        settings_for(origin, **settings),
        origin.url(host=host),
        resolver=lambda host, port: [ip_address("127.0.0.1")],
    )

    assert (error.code, error.message) == ("image_url_refused", REFUSED)
    assert origin.hits == 0


@pytest.mark.parametrize("private", [("a.example",), ("*.example",), ("127.0.0.0/8",)])
async def test_what_the_settings_name_may_be_private(origin, private):
    settings = settings_for(origin, fetch_private_hosts=private, fetch_allowed_hosts=("a.example",))

    contents = await fetch(
        settings,
        origin.url(host="a.example"),
        resolver=lambda host, port: [ip_address("127.0.0.1")],
    )

    assert contents == [PICTURE]


async def test_nothing_is_asked_where_fetching_is_off(origin):
    error = await refusal(settings_for(origin, fetch_urls=False), origin.url())

    assert error.code == "image_url_unsupported"
    assert origin.hits == 0


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTPS_PROXY", "ALL_PROXY"])
async def test_no_proxy_of_the_environment_is_used(origin, monkeypatch, proxy):
    async with serving() as other:
        monkeypatch.setenv(proxy, other.url(""))

        await fetch(settings_for(origin), origin.url())

        assert (origin.hits, other.hits) == (1, 0)


async def test_names_that_do_not_resolve_and_closed_ports_look_like_refusals(origin):
    def unknown(host: str, port: int):
        raise OSError

    async with serving() as closed:
        pass

    no_name = await refusal(FetchSettings(), "http://a.example/", resolver=unknown)
    no_server = await refusal(settings_for(closed), closed.url())

    for error in (no_name, no_server):
        assert (error.code, error.message) == ("image_url_refused", REFUSED)


async def test_the_next_address_is_asked_where_one_is_closed(origin):
    addresses = [ip_address("127.0.0.3"), ip_address("127.0.0.1")]

    contents = await fetch(
        settings_for(origin, fetch_private_hosts=("127.0.0.0/8",)),
        origin.url(host="a.example"),
        resolver=lambda host, port: addresses,
    )

    assert contents == [PICTURE]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(replied(b"secret text", "404 Not Found"), id="404"),
        pytest.param(replied(b"secret text", "500 Internal Server Error"), id="500"),
        pytest.param(replied(PICTURE, "206 Partial Content"), id="partial"),
        pytest.param(replied(b"", "302 Found"), id="redirect-without-location"),
        pytest.param(replied(b"", "304 Not Modified"), id="not-modified"),
        pytest.param(replied(PICTURE, Content_Length="9000"), id="ends-early"),
        pytest.param(replied(b"\x1f\x8b" + bytes(50), Content_Encoding="gzip"), id="gzip"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="no-http"),
        pytest.param(b"", id="nothing"),
        pytest.param(replied(PICTURE, Content_Length="9" * 5000), id="absurd-length"),
        pytest.param(replied(PICTURE, Content_Length="-1"), id="negative-length"),
        pytest.param(replied(PICTURE, content_length="1"), id="two-lengths"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="chunk"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000, id="long-head"),
    ],
)
async def test_a_bad_answer_is_the_urls_fault_and_its_text_is_not_told(origin, answer):
    origin.answers["/bad"] = answer

    error = await refusal(settings_for(origin), origin.url("/bad"))

    assert (error.status, error.code) == (400, "image_fetch_failed")
    assert error.message == "The URL did not answer with a file."
    assert not error.may_retry


async def test_what_comes_after_the_announced_length_is_not_read(origin):
    origin.answers["/x.png"] = replied(PICTURE, Content_Length="100")

    assert await fetch(settings_for(origin), origin.url()) == [PICTURE[:100]]


async def test_content_is_not_judged_by_its_type(origin):
    origin.answers["/x"] = replied(PICTURE, Content_Type="text/html")

    assert await fetch(settings_for(origin), origin.url("/x")) == [PICTURE]


async def test_a_length_over_the_limit_is_refused_before_it_comes(origin):
    async def announce(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")

    origin.answers["/big"] = announce

    error = await refusal(settings_for(origin), origin.url("/big"))

    assert (error.status, error.code) == (413, "image_too_large")
    with anyio.fail_after(5):
        await origin.left.wait()


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_endless_body_is_cut_at_the_limit(origin, chunked):
    num_bytes = 0

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal num_bytes
        writer.write(b"HTTP/1.1 200 OK\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n")
        while not writer.is_closing():
            piece = bytes(10_000)
            writer.write(b"2710\r\n" + piece + b"\r\n" if chunked else piece)
            num_bytes += len(piece)
            await writer.drain()

    origin.answers["/endless"] = pour

    error = await refusal(settings_for(origin), origin.url("/endless"))

    assert (error.status, error.code) == (413, "image_too_large")


async def test_how_large_a_file_may_be_depends_on_what_its_field_takes(origin):
    origin.answers["/file"] = replied(bytes(120_000))
    with contextlib.closing(Fetcher(settings_for(origin), LIMITS)) as fetcher:
        document = RemoteFile(origin.url("/file"), "file", ("document",))
        with pytest.raises(ServiceError) as error:
            await fetcher.fetch_all([document, document._replace(kinds=("image",))])

        assert error.value.code == "image_too_large"
        assert await fetcher.fetch_all([document]) == [bytes(120_000)]


async def test_pictures_that_are_legal_alone_are_refused_together(origin):
    for place in range(2):
        origin.answers[f"/{place}"] = replied(bytes(90_000))

    error = await refusal(settings_for(origin), origin.url("/0"), origin.url("/1"))

    assert (error.status, error.code) == (413, "media_budget_exceeded")


async def silence(writer: asyncio.StreamWriter) -> None:
    """Say nothing."""


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    with contextlib.suppress(OSError):
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)


async def drip_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX: ")
    with contextlib.suppress(OSError):
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("answer", [silence, drip, drip_head])
async def test_a_slow_answer_is_told_and_may_be_tried_again(origin, answer):
    origin.answers["/slow"] = answer
    settings = settings_for(origin, fetch_timeout_seconds=0.2)

    error = await refusal(settings, origin.url("/slow"))

    assert isinstance(error, ImageFetchTimeout)
    assert (error.status, error.code, error.may_retry) == (400, "image_fetch_timeout", True)


async def test_all_pictures_together_have_a_time(origin):
    origin.answers["/slow"] = silence
    settings = settings_for(origin, fetch_total_seconds=0.2)

    error = await refusal(settings, origin.url("/slow"))

    assert error.code == "image_fetch_timeout"


async def test_redirects_count_against_the_time_of_their_picture(origin):
    async def slow_redirect(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(redirected("/loop"))
        writer.close()

    origin.answers["/loop"] = slow_redirect

    error = await refusal(settings_for(origin, fetch_timeout_seconds=0.3), origin.url("/loop"))

    assert error.code == "image_fetch_timeout"


async def test_a_slow_resolver_is_told_as_a_slow_answer():
    held = asyncio.Event()
    loop = asyncio.get_running_loop()

    def resolver(host: str, port: int):
        asyncio.run_coroutine_threadsafe(held.wait(), loop).result(5)
        return []

    settings = FetchSettings(fetch_timeout_seconds=0.2)
    error = await refusal(settings, "http://a.example/", resolver=resolver)
    held.set()

    assert error.code == "image_fetch_timeout"


async def test_a_fetch_that_is_cancelled_closes_its_connection(origin, log):
    origin.answers["/slow"] = silence

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fetch, settings_for(origin), origin.url("/slow"))
        with anyio.fail_after(5):
            while not origin.heads:  # noqa: ASYNC110 - nothing sets an event
                await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()

    with anyio.fail_after(5):
        await origin.left.wait()
    assert [event["verdict"] for event in log] == ["cancelled"]


async def test_the_first_failure_ends_the_others(origin):
    origin.answers["/slow"] = silence

    with anyio.fail_after(5):
        error = await refusal(settings_for(origin), origin.url("/slow"), origin.url("/none"))
        await origin.left.wait()

    assert (error.code, error.param) == ("image_fetch_failed", "images[1]")


HEADERS = {"127.0.0.1": {"Authorization": "Bearer word"}}


async def test_headers_go_to_the_host_they_are_set_for(origin):
    await fetch(settings_for(origin, fetch_headers=HEADERS), origin.url())

    assert "Authorization: Bearer word\r\n" in origin.heads[0]


async def test_a_header_that_is_set_takes_the_place_of_the_usual_one(origin):
    headers = {"127.0.0.1": {"user-agent": "Viewer/1.0"}}
    await fetch(settings_for(origin, fetch_headers=headers), origin.url())

    agents = [line for line in origin.heads[0].splitlines() if line.lower().startswith("user-a")]
    assert agents == ["user-agent: Viewer/1.0"]


async def test_headers_do_not_go_where_a_redirect_leads(origin):
    async with serving("127.0.0.2") as other:
        origin.answers["/go"] = redirected(other.url(host="127.0.0.2"))
        settings = settings_for(
            origin, other, fetch_headers=HEADERS, fetch_private_hosts=("127.0.0.0/8",)
        )

        await fetch(settings, origin.url("/go"))

        assert "Authorization" in origin.heads[0]
        assert "Authorization" not in other.heads[0]


async def test_headers_are_not_sent_in_clear_to_a_public_name(origin):
    settings = settings_for(origin, fetch_headers={"a.example": {"Authorization": "Bearer word"}})

    await fetch(
        settings,
        origin.url(host="a.example"),
        resolver=lambda host, port: [ip_address("127.0.0.1")],
    )

    assert "Authorization" not in origin.heads[0]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate of its own making, for a.example, with its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("makes its certificate with openssl")
    file = tmp_path_factory.mktemp("tls") / "pair.pem"
    subprocess.run(
        shlex.split(
            f"{openssl} req -x509 -nodes -days 2 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
            "-subj /CN=a.example -addext subjectAltName=DNS:a.example "
            f"-keyout {file} -out {file}.crt"
        ),
        check=True,
        capture_output=True,
    )
    with file.open("a") as pair:
        pair.write(Path(f"{file}.crt").read_text())
    return file


@pytest.fixture
async def tls_origin(certificate) -> AsyncIterator[Origin]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    async with serving(tls=context) as served:
        yield served


def to_loopback(host: str, port: int):
    return [ip_address("127.0.0.1")]


async def test_a_certificate_that_nobody_vouches_for_is_refused(tls_origin):
    error = await refusal(
        settings_for(tls_origin),
        tls_origin.url(scheme="https", host="a.example"),
        resolver=to_loopback,
    )

    assert error.code == "image_fetch_failed"
    assert tls_origin.heads == []


async def test_the_name_is_what_a_certificate_must_be_for(tls_origin, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    settings = settings_for(tls_origin)

    contents = await fetch(
        settings, tls_origin.url(scheme="https", host="a.example"), resolver=to_loopback
    )
    error = await refusal(
        settings, tls_origin.url(scheme="https", host="b.example"), resolver=to_loopback
    )

    assert contents == [PICTURE]
    assert error.code == "image_fetch_failed"


async def test_headers_are_sent_over_tls(tls_origin, certificate, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    settings = settings_for(tls_origin, fetch_headers={"A.example": {"X-Word": "word"}})

    await fetch(settings, tls_origin.url(scheme="https", host="a.example"), resolver=to_loopback)

    assert "X-Word: word\r\n" in tls_origin.heads[0]


async def test_a_redirect_from_https_to_http_is_refused(
    tls_origin, origin, certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls_origin.answers["/go"] = redirected(origin.url())

    error = await refusal(
        settings_for(tls_origin, origin),
        tls_origin.url("/go", scheme="https", host="a.example"),
        resolver=to_loopback,
    )

    assert error.code == "image_url_refused"
    assert origin.hits == 0
