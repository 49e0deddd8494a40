"""Who is let in: keys, hosts, origins, crowds, on every path and before a body is read."""

import contextlib
import logging

import anyio
import pytest

from service.access.key_file import add_key
from service.access.settings import AccessSettings
from service.http.connection_limits import ConnectionLimits
from service.media.fetch_settings import FetchSettings

QUESTION = {"input_type": "text_only", "text": "What is this?"}
PROBES = ("/health/live", "/health/ready", "/v1/health")
PAGE = "https://app.example.com"


@pytest.fixture
def key_path(tmp_path):
    return tmp_path / "keys.toml"


@pytest.fixture
def key(key_path):
    return add_key(key_path, "alice", tenant="team-a", is_admin=False)


@pytest.fixture
def guarded(new_engine, serve, key_path, key):
    """Serve with a key file: `async with guarded() as (client, engine, port)`."""

    @contextlib.asynccontextmanager
    async def start(**settings):
        engine = new_engine()
        access = AccessSettings(api_keys=str(key_path), **settings.pop("access", {}))
        async with serve(engine, access=access, **settings) as (client, port):
            yield client, engine, port

    return start


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def converse(port: int, request: bytes) -> bytes:
    """Send, then read until the server closes or a second passes in silence."""
    received = b""
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(request)
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, TimeoutError):
            while True:
                with anyio.fail_after(1):
                    received += await stream.receive()
    return received


async def test_without_a_key_only_the_open_paths_answer(guarded):
    closed = ["/v1/chat", "/v1/chat/stream", "/v1/nowhere", "/nowhere", "/metrics", "/docs/a/b"]
    async with guarded() as (client, engine, _):
        refused = [
            await client.request(method, path, headers={"x-request-id": "mine"})
            for path in closed
            for method in ("GET", "POST", "DELETE", "OPTIONS", "PATCH")
        ]
        opened = [
            await client.get(path)
            for path in (*PROBES, "/docs", "/docs/start.js", "/schema/openapi.json")
        ]

    assert {response.status_code for response in refused} == {401}
    assert {response.headers["www-authenticate"] for response in refused} == {
        'Bearer realm="loupe"'
    }
    assert {response.headers["x-should-retry"] for response in refused} == {"false"}
    assert {response.headers["x-request-id"] for response in refused} == {"mine"}
    assert {response.status_code for response in opened} == {200}
    assert engine.requests == []


async def test_a_refusal_has_the_shape_of_the_path(guarded):
    async with guarded() as (client, _, _):
        native = (await client.post("/v1/chat", json=QUESTION)).json()
        other = (await client.get("/nowhere")).json()

    assert (native["success"], native["code"]) == (False, "api_key_missing")
    assert other["error"]["code"] == "api_key_missing"
    assert other["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat",
        "/docs/../v1/chat",
        "/docs/%2e%2e/v1/chat",
        "/docs%2f..%2fv1%2fchat",
        "/health/live/../../v1/chat",
        "/health/live%00/v1/chat",
        "/%76%31/chat",
        "/v1/chat?x=/docs",
        "http://x/v1/chat",
        "http://x/docs/../v1/chat",
    ],
)
async def test_no_spelling_of_a_path_gets_past_the_guard(guarded, path):
    async with guarded() as (_, engine, port):
        body = b'{"input_type":"text_only","text":"Hi"}'
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        received = await converse(port, head.encode() + body)

    assert received.split()[1] in (b"401", b"404", b"405")
    assert engine.requests == []


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param(bearer, id="bearer"),
        pytest.param(lambda key: {"authorization": f"bEARER   {key}"}, id="scheme-in-any-case"),
        pytest.param(lambda key: {"x-api-key": key}, id="x-api-key"),
        pytest.param(lambda key: bearer(key) | {"x-api-key": key}, id="both-alike"),
        pytest.param(
            lambda key: {"authorization": "Basic eDp5", "x-api-key": key}, id="a-proxy-s-own-beside"
        ),
    ],
)
async def test_a_known_key_is_let_in_and_names_the_tenant(guarded, key, log, headers):
    async with guarded() as (client, engine, _):
        answered = await client.post("/v1/chat", json=QUESTION, headers=headers(key))

    (line,) = [event for event in log if event["event"] == "HTTP request processed"]
    assert answered.status_code == 200
    assert engine.requests[0].tenant == "team-a"
    assert line["caller"] == "alice"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        pytest.param(lambda key: {}, "api_key_missing", id="none"),
        pytest.param(lambda key: {"authorization": key}, "api_key_missing", id="no-scheme"),
        pytest.param(lambda key: {"authorization": "Bearer"}, "api_key_missing", id="no-key"),
        pytest.param(lambda key: {"x-api-key": ""}, "api_key_missing", id="blank"),
        pytest.param(lambda key: {"authorization": "Basic x"}, "api_key_missing", id="basic"),
        pytest.param(lambda key: bearer(key.swapcase()), "api_key_invalid", id="other-case"),
        pytest.param(lambda key: bearer(key[:-1]), "api_key_invalid", id="cut"),
        pytest.param(lambda key: {"x-api-key": "wrong"}, "api_key_invalid", id="wrong"),
        pytest.param(
            lambda key: bearer(key) | {"x-api-key": "wrong"},
            "api_key_invalid",
            id="two-that-differ",
        ),
        pytest.param(lambda key: {"cookie": f"api_key={key}"}, "api_key_missing", id="cookie"),
    ],
)
async def test_any_other_key_is_refused(guarded, key, headers, code):
    async with guarded() as (client, engine, _):
        refused = await client.post("/v1/chat", json=QUESTION, headers=headers(key))
        in_the_url = await client.post(f"/v1/chat?api_key={key}", json=QUESTION)

    assert (refused.status_code, refused.json()["code"]) == (401, code)
    assert in_the_url.status_code == 401
    assert engine.requests == []


async def test_a_key_is_asked_for_before_a_byte_of_the_body(guarded):
    head = b"POST /v1/chat HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
    async with guarded() as (_, _, port):
        received = await converse(port, head)

    assert received.startswith(b"HTTP/1.1 401")


async def test_no_key_is_ever_logged_or_told(guarded, key, log, caplog):
    caplog.set_level(logging.DEBUG)
    wrong = "loupe_" + "canary7f3a"
    replies = []
    async with guarded() as (client, engine, _):
        for headers in (bearer(key), {"x-api-key": key}, bearer(wrong), bearer(key + wrong)):
            replies.append(await client.post("/v1/chat", json=QUESTION, headers=headers))
            replies.append(await client.get(f"/nowhere?key={key}", headers=headers))
            replies.append(await client.post("/v1/chat", content=b"x", headers=headers))
        engine.error = ValueError(key)
        replies.append(await client.post("/v1/chat", json=QUESTION, headers=bearer(key)))

    logged = repr(log) + caplog.text
    told = "".join(reply.text + repr(reply.headers) for reply in replies)
    unhandled = [event for event in log if event["event"] == "Unhandled error"]
    assert len([event for event in log if "status_code" in event]) == len(replies)
    assert [repr(event.pop("exc_info")) for event in unhandled] == [repr(engine.error)]
    assert wrong not in logged + told
    assert key not in repr(log) + told


async def test_the_key_file_is_followed_while_serving(guarded, key_path, key, eventually, log):
    async def status(candidate: str) -> int:
        return (await client.get("/nowhere", headers=bearer(candidate))).status_code

    async with guarded() as (client, _, _):
        new = add_key(key_path, "bob", tenant=None, is_admin=False)
        with anyio.fail_after(10):
            while await status(new) != 404:  # noqa: ASYNC110 - nothing sets an event
                await anyio.sleep(0.1)
        key_path.write_text("not toml at all")
        await eventually(lambda: any(event["event"] == "key_file_refused" for event in log))
        kept = await status(key)

    assert kept == 404


async def test_metrics_are_open_where_the_operator_says_so(guarded):
    async with guarded(access={"open_metrics": True}) as (client, _, _):
        assert (await client.get("/metrics")).status_code != 401


async def test_without_a_key_file_anyone_may_ask(service):
    answered = await service.client.post("/v1/chat", json=QUESTION, headers=bearer("whatever"))

    assert answered.status_code == 200
    assert service.engine.requests[0].tenant == ""


async def test_only_named_hosts_are_answered(new_engine, serve):
    access = AccessSettings(allowed_hosts=("loupe.example",))
    async with serve(new_engine(), access=access) as (client, _):
        right = await client.get("/docs", headers={"host": "loupe.example:8000"})
        wrong = [
            await client.request(method, path, headers={"host": "evil.example"})
            for method, path in [("POST", "/v1/chat"), ("GET", "/docs"), ("GET", "/nowhere")]
        ]
        probe = await client.get("/health/live", headers={"host": "10.1.2.3:8000"})

    assert (right.status_code, probe.status_code) == (200, 200)
    assert {response.status_code for response in wrong} == {400}
    assert wrong[0].json()["code"] == "host_invalid"


async def test_a_request_without_a_host_is_refused(service):
    received = await converse(service.port, b"GET /docs HTTP/1.1\r\nconnection: close\r\n\r\n")

    assert received.startswith(b"HTTP/1.1 400")
    assert b"host_invalid" in received


async def test_pages_of_a_named_origin_may_call(guarded, key):
    preflight = {
        "origin": PAGE,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-os",
    }
    async with guarded(access={"cors_origins": (PAGE,)}) as (client, _, _):
        allowed = await client.options("/v1/chat", headers=preflight)
        answered = await client.post(
            "/v1/chat", json=QUESTION, headers=bearer(key) | {"origin": PAGE}
        )
        refused = await client.post("/v1/chat", json=QUESTION, headers={"origin": PAGE})

    assert (allowed.status_code, allowed.content) == (204, b"")
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert "x-stainless-os" in allowed.headers["access-control-allow-headers"]
    assert (answered.status_code, refused.status_code) == (200, 401)
    for response in (allowed, answered, refused):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "origin" in response.headers["vary"]
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["x-request-id"]
    for response in (answered, refused):
        exposed = response.headers["access-control-expose-headers"]
        assert {"x-request-id", "retry-after", "x-ignored-params"} <= set(exposed.split(", "))


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://app.example.com",
        f"{PAGE}.evil.example",
        f"{PAGE}:8443",
        "https://appxexample.com",
        PAGE.upper(),
        "null",
        "",
    ],
)
async def test_pages_of_other_origins_get_no_permission(new_engine, serve, origin):
    preflight = {"origin": origin, "access-control-request-method": "POST"}
    async with serve(new_engine(), access=AccessSettings(cors_origins=(PAGE,))) as (client, _):
        responses = [
            await client.options("/v1/chat", headers=preflight),
            await client.post("/v1/chat", json=QUESTION, headers={"origin": origin}),
        ]

    assert responses[1].status_code == 200
    for response in responses:
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["vary"] == "origin"


async def test_no_origin_is_permitted_without_a_list(service):
    response = await service.client.post("/v1/chat", json=QUESTION, headers={"origin": PAGE})

    assert not [name for name in response.headers if name.startswith("access-control")]


@contextlib.asynccontextmanager
async def held_streams(client, engine, picture, *holders: dict[str, str]):
    """Open a stream for each set of headers, and hold them until the end."""
    engine.holds = anyio.Event()
    async with contextlib.AsyncExitStack() as stack:
        for headers in holders:
            form = {"data": {"text": "Hi"}, "files": {"image": ("a", picture)}}
            stream = client.stream("POST", "/v1/chat/stream", headers=headers, **form)
            response = await stack.enter_async_context(stream)
            assert response.status_code == 200
        yield
        engine.holds.set()


async def test_more_requests_than_a_worker_takes_are_refused_but_not_its_probes(
    new_engine, serve, picture, eventually
):
    engine = new_engine()
    limits = ConnectionLimits(max_open_requests=2)
    async with serve(engine, connections=limits) as (client, _):
        async with held_streams(client, engine, picture, {}, {}):
            refused = await client.post("/v1/chat", json=QUESTION)
            probe = await client.get("/health/ready")
        await eventually(lambda: not engine.unfinished)
        engine.holds = None
        answered = await client.post("/v1/chat", json=QUESTION)

    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) >= 1
    assert (probe.status_code, answered.status_code) == (200, 200)


async def test_one_key_s_streams_leave_room_for_another_s(guarded, key, key_path, picture):
    other = add_key(key_path, "bob", tenant=None, is_admin=False)
    limits = ConnectionLimits(max_open_requests_per_key=1)
    async with (
        guarded(connections=limits) as (client, engine, _),
        held_streams(client, engine, picture, bearer(key), bearer(other)),
    ):
        statuses = [
            (await client.post("/v1/chat", json=QUESTION, headers=bearer(each))).status_code
            for each in (key, other)
        ]

    assert statuses == [503, 503]


async def test_status_is_for_admins_and_keeps_secrets(guarded, key_path, key):
    admin = add_key(key_path, "root", tenant=None, is_admin=True)
    fetch = FetchSettings(fetch_headers={"cdn.example.com": {"Authorization": "canary-7f3a"}})
    async with guarded(fetch=fetch) as (client, _, _):
        refused = await client.get("/admin/status", headers=bearer(key))
        response = await client.get("/admin/status", headers=bearer(admin))

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")
    assert response.status_code == 200
    assert response.json()["settings"]["api_keys"] == str(key_path)
    assert "canary" not in response.text
