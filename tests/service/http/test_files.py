"""Uploaded files through a real server, and pictures that requests name by id or by URL."""

import asyncio
import contextlib
import functools
import re

import anyio
import httpx
import pytest

from service.access.key_file import add_key
from service.access.settings import AccessSettings
from service.files.file_settings import FileSettings
from service.media.fetch_settings import FetchSettings

PDF = b"%PDF-1.7\n" + bytes(200)
NOBODYS = "file-" + "0" * 32


@pytest.fixture(scope="module")
def small() -> FileSettings:
    return FileSettings(
        max_file_bytes=3_000_000, max_tenant_file_bytes=8_000_000, max_tenant_files=5
    )


@pytest.fixture
async def client(new_engine, serve, small):
    async with serve(new_engine(), files=small) as (client, _):
        yield client


async def upload(
    client: httpx.AsyncClient, content: bytes, name: str = "cat.png", **fields: str
) -> httpx.Response:
    data = {"purpose": "vision", **fields}
    data = {name.replace("__seconds", "[seconds]"): value for name, value in data.items()}
    data = {name.replace("__anchor", "[anchor]"): value for name, value in data.items()}
    return await client.post("/v1/files", data=data, files={"file": (name, content)})


def fault(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["param"]


async def test_a_file_is_uploaded_described_downloaded_and_deleted(client, picture):
    uploaded = await upload(client, picture)
    file = uploaded.json()
    path = f"/v1/files/{file['id']}"

    assert uploaded.status_code == 200
    assert re.fullmatch(r"file-[0-9a-f]{32}", file["id"])
    assert file["expires_at"] - file["created_at"] == 24 * 3600
    assert {name: file[name] for name in ("object", "bytes", "filename", "purpose", "status")} == {
        "object": "file",
        "bytes": len(picture),
        "filename": "cat.png",
        "purpose": "vision",
        "status": "processed",
    }
    assert (await client.get(path)).json() == file
    content = await client.get(f"{path}/content")
    assert content.content == picture
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["x-content-type-options"] == "nosniff"
    assert content.headers["content-disposition"] == "attachment; filename*=UTF-8''cat.png"
    deleted = await client.delete(path)
    assert deleted.json() == {"id": file["id"], "object": "file", "deleted": True}
    for gone in (await client.get(path), await client.delete(path)):
        assert fault(gone) == (404, "file_not_found", None)
    assert fault(await client.get(f"{path}/content")) == (404, "file_not_found", None)


async def test_a_file_larger_than_any_piece_comes_back_whole(client):
    content = b"\xff\xd8\xff" + bytes(range(256)) * 11_000

    file = (await upload(client, content)).json()

    assert (await client.get(f"/v1/files/{file['id']}/content")).content == content


async def test_files_are_listed_in_pieces(client, picture):
    for purpose in ("vision", "user_data", "vision", "assistants"):
        await upload(client, picture, purpose=purpose)

    whole = (await client.get("/v1/files")).json()
    ids = [file["id"] for file in whole["data"]]
    first = (await client.get("/v1/files", params={"limit": 3})).json()
    rest = (await client.get("/v1/files", params={"limit": 3, "after": first["last_id"]})).json()
    upwards = (await client.get("/v1/files", params={"order": "asc"})).json()
    visions = (await client.get("/v1/files", params={"purpose": "vision"})).json()

    assert (whole["object"], whole["has_more"], len(ids)) == ("list", False, 4)
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert (first["first_id"], first["last_id"]) == (ids[0], ids[2])
    assert [file["id"] for file in first["data"] + rest["data"]] == ids
    assert [file["id"] for file in upwards["data"]] == ids[::-1]
    assert {file["purpose"] for file in visions["data"]} == {"vision"}
    assert len(visions["data"]) == 2


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"limit": "0"}, "value_out_of_range"),
        ({"limit": "many"}, "type_invalid"),
        ({"order": "up"}, "value_unknown"),
        ({"colour": "red"}, "field_unknown"),
    ],
)
async def test_a_bad_query_is_refused_by_its_field(client, query, expected):
    response = await client.get("/v1/files", params=query)

    assert fault(response) == (400, expected, next(iter(query)))


async def test_an_upload_may_say_how_long_to_keep_it(client, picture):
    response = await upload(
        client, picture, expires_after__anchor="created_at", expires_after__seconds="7200"
    )

    file = response.json()
    assert file["expires_at"] - file["created_at"] == 7200


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"purpose": ""}, ("field_missing", "purpose")),
        ({"purpose": "fine-tune"}, ("value_unknown", "purpose")),
        ({"expires_after__seconds": "60"}, ("value_out_of_range", "expires_after[seconds]")),
        ({"expires_after__seconds": "99999999"}, ("value_out_of_range", "expires_after[seconds]")),
        ({"expires_after__seconds": "soon"}, ("type_invalid", "expires_after[seconds]")),
        ({"expires_after__anchor": "created_at"}, ("field_missing", "expires_after[seconds]")),
        ({"expires_after__anchor": "now"}, ("value_unknown", "expires_after[anchor]")),
        ({"colour": "red"}, ("field_unknown", "colour")),
    ],
)
async def test_a_bad_field_is_refused_and_nothing_kept(client, picture, fields, expected):
    response = await upload(client, picture, **fields)

    assert fault(response) == (400, *expected)
    assert response.headers["x-should-retry"] == "false"
    assert (await client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", "file_empty", id="empty"),
        pytest.param(b"PK\x03\x04" + bytes(100), "file_type_unsupported", id="zip"),
        pytest.param(b"<html><script>", "file_type_unsupported", id="html"),
        pytest.param(b"<svg/>", "file_type_unsupported", id="svg"),
    ],
)
async def test_a_file_of_no_use_is_refused_whatever_it_is_called(client, content, expected):
    assert fault(await upload(client, content, "cat.png")) == (400, expected, "file")
    assert (await client.get("/v1/files")).json()["data"] == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\cat.png", "cat.png"),
        ("a" * 10_000 + ".png", "a" * 200),
        ("cat\u202egnp.exe", "catgnp.exe"),
        ("Katze ü.png", "Katze ü.png"),
        ("..", ".."),
        ("/", "file"),
    ],
)
async def test_a_file_name_is_for_show_alone(client, picture, name, shown):
    file = (await upload(client, picture, name)).json()

    assert file["filename"] == shown
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == picture


async def test_a_file_over_the_limit_is_refused(client):
    little = await upload(client, b"GIF89a" + bytes(3_000_000))
    much = await upload(client, b"GIF89a" + bytes(4_000_000))

    assert fault(little) == (413, "file_too_large", "file")
    assert fault(much) == (413, "body_too_large", None)
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_a_file_without_an_announced_length_is_held_to_the_same_limit(client):
    async def body():
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nvision\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.gif"\r\n\r\n'
        yield b"GIF89a"
        for _ in range(7):
            yield bytes(500_000)
        yield b"\r\n--x--\r\n"

    response = await client.post(
        "/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=x"}
    )

    assert response.status_code == 413
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_files_have_a_number(client, picture):
    for _ in range(5):
        assert (await upload(client, picture)).status_code == 200

    assert fault(await upload(client, picture)) == (413, "file_quota_exceeded", None)


async def test_no_room_for_anyone_is_told_as_ours(new_engine, serve, picture):
    settings = FileSettings(max_all_file_bytes=len(picture))
    async with serve(new_engine(), files=settings) as (client, _):
        response = await upload(client, picture + bytes(10))

    assert fault(response) == (503, "storage_full", None)
    assert response.headers["retry-after"] == "60"
    assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize(
    ("files", "data", "expected"),
    [
        pytest.param(
            [("other", ("a.png", b"GIF89a"))], {}, (400, "field_missing", "file"), id="other-field"
        ),
        pytest.param(
            [("file", ("a.png", b"GIF89a")), ("other", ("b.png", b"GIF89a"))],
            {},
            (400, "field_unknown", None),
            id="one-too-many",
        ),
        pytest.param(
            [("file", ("a.png", b"GIF89a")), ("file", ("b.png", b"GIF89a"))],
            {},
            (400, "field_repeated", "file"),
            id="twice",
        ),
        pytest.param(
            [("x", ("", b""))],
            {"file": "GIF89a"},
            (400, "multipart_invalid", "file"),
            id="without-a-name",
        ),
    ],
)
async def test_a_form_without_its_one_file_is_refused(client, files, data, expected):
    response = await client.post("/v1/files", data={"purpose": "vision", **data}, files=files)

    assert fault(response) == expected
    assert (await client.get("/v1/files")).json()["data"] == []


async def test_only_forms_are_taken(client):
    response = await client.post("/v1/files", json={"purpose": "vision"})

    assert fault(response) == (415, "media_type_unsupported", None)


async def test_an_upload_whose_client_leaves_is_not_kept(client, new_engine, serve, tmp_path):
    settings = FileSettings(files_folder=str(tmp_path / "files"))
    head = (
        b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n"
        b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.gif"\r\n\r\nGIF89a'
    )
    async with serve(new_engine(), files=settings) as (_, port):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(head + bytes(2_000_000))
            with anyio.fail_after(5):
                while not list(tmp_path.rglob("content")):  # noqa: ASYNC110
                    await anyio.sleep(0.01)
        with anyio.fail_after(5):
            while list(tmp_path.rglob("content")):  # noqa: ASYNC110
                await anyio.sleep(0.01)


async def test_an_upload_that_is_too_slow_is_ended(new_engine, serve, small):
    async def body():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.gif"\r\n\r\nGIF89a'
        await anyio.sleep(1)

    async with serve(new_engine(), files=small, request_timeout_seconds=0.3) as (client, _):
        response = await client.post(
            "/v1/files", content=body(), headers={"content-type": "multipart/form-data; boundary=x"}
        )

        assert fault(response) == (408, "body_timeout", None)
        assert (await client.get("/v1/files")).json()["data"] == []


async def test_another_tenants_file_is_as_one_that_is_not(new_engine, serve, tmp_path, picture):
    keys = tmp_path / "keys.toml"
    alice, bob, carol = (
        {"authorization": f"Bearer {add_key(keys, name, tenant=tenant, is_admin=False)}"}
        for name, tenant in (("alice", "a"), ("bob", "b"), ("carol", "a"))
    )
    access = AccessSettings(api_keys=str(keys))
    async with serve(new_engine(), access=access) as (client, _):
        uploaded = await client.post(
            "/v1/files", data={"purpose": "vision"}, files={"file": ("a", picture)}, headers=alice
        )
        path = f"/v1/files/{uploaded.json()['id']}"
        question = {"input_type": "image_only", "image_url": uploaded.json()["id"]}

        for method, url in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
            response = await client.request(method, url, headers=bob)
            assert fault(response) == (404, "file_not_found", None)
        assert (await client.get("/v1/files", headers=bob)).json()["data"] == []
        foreign = await client.post("/v1/chat", json=question, headers=bob)
        assert (foreign.status_code, foreign.json()["code"]) == (404, "file_not_found")
        assert (await client.post("/v1/chat", json=question, headers=carol)).status_code == 200


async def test_a_picture_is_the_same_by_id_by_url_and_in_the_request(
    new_engine, serve, picture, picture_text
):
    async with origin_of(picture) as port:
        fetch = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,))
        engine = new_engine()
        async with serve(engine, fetch=fetch) as (client, _):
            file_id = (await upload(client, picture)).json()["id"]
            ways = [
                {"image_url": file_id},
                {"image_url": f"http://127.0.0.1:{port}/cat.png"},
                {"image_base64": picture_text},
            ]
            replies = [
                await client.post("/v1/chat", json={"input_type": "image_only"} | way)
                for way in ways
            ]

    assert [reply.status_code for reply in replies] == [200, 200, 200]
    by_id, by_url, inline = engine.requests
    assert by_id.visions == by_url.visions == inline.visions
    assert by_id.prompt_token_ids == by_url.prompt_token_ids == inline.prompt_token_ids
    fetched = ["image_fetch" in reply.json()["timings_ms"] for reply in replies]
    assert fetched == [False, True, False]


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("file:///etc/passwd", "image_url_scheme"),
        ("http://169.254.169.254/latest/meta-data", "image_url_refused"),
        ("http://u:p@a.example/", "image_url_invalid"),
        (NOBODYS, "file_not_found"),
    ],
)
async def test_a_bad_url_is_told_by_its_code(service, url, code):
    question = {"input_type": "image_only", "image_url": url}

    response = await service.client.post("/v1/chat", json=question)

    assert response.status_code == (404 if code == "file_not_found" else 400)
    assert (response.json()["code"], response.json()["param"]) == (code, "image_url")
    assert service.engine.requests == []


async def test_a_page_instead_of_a_picture_is_told_by_its_bytes(new_engine, serve):
    async with origin_of(b"<html>secret</html>") as port:
        fetch = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,))
        async with serve(new_engine(), fetch=fetch) as (client, _):
            question = {"input_type": "image_only", "image_url": f"http://127.0.0.1:{port}/"}
            response = await client.post("/v1/chat", json=question)

    assert (response.status_code, response.json()["code"]) == (400, "image_format_unsupported")
    assert "secret" not in response.text


async def test_a_slow_url_may_be_tried_again(new_engine, serve):
    async with origin_of(None) as port:
        fetch = FetchSettings(
            fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,), fetch_timeout_seconds=0.2
        )
        async with serve(new_engine(), fetch=fetch) as (client, _):
            question = {"input_type": "image_only", "image_url": f"http://127.0.0.1:{port}/"}
            response = await client.post("/v1/chat", json=question)

    assert (response.status_code, response.json()["code"]) == (400, "image_fetch_timeout")
    assert response.headers["x-should-retry"] == "true"


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
async def test_a_client_that_leaves_ends_the_fetch(new_engine, serve, log, path):
    reached, left = anyio.Event(), anyio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reached.set()
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        fetch = FetchSettings(fetch_private_hosts=("127.0.0.1",), fetch_ports=(port,))
        async with serve(new_engine(), fetch=fetch) as (client, _):
            question = {"input_type": "image_only", "image_url": f"http://127.0.0.1:{port}/"}
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(functools.partial(client.post, path, json=question))
                with anyio.fail_after(5):
                    await reached.wait()
                tasks.cancel_scope.cancel()
            with anyio.fail_after(5):
                await left.wait()

    verdicts = [event["verdict"] for event in log if event["event"] == "Image fetch"]
    assert verdicts == ["cancelled"]


async def test_the_document_tells_what_paths_and_queries_take(service):
    paths = (await service.client.get("/schema/openapi.json")).json()["paths"]

    queried = {each["name"] for each in paths["/v1/files"]["get"]["parameters"]}
    assert queried == {"purpose", "order", "limit", "after"}
    for method in ("get", "delete"):
        [file_id] = paths["/v1/files/{file_id}"][method]["parameters"]
        assert (file_id["name"], file_id["in"], file_id["required"]) == ("file_id", "path", True)


@contextlib.asynccontextmanager
async def origin_of(body: bytes | None):
    """Serve one body on a free port, or silence."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if body is None:
            await reader.read()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
