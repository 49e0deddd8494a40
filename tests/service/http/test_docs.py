"""The API document says what the service does, and its page needs nobody else."""

import ast
import re
from pathlib import Path

import msgspec
import pytest

from service.access.open_paths import OpenPaths
from service.app import create_app
from service.config import Settings
from service.error_codes import ERROR_CODES
from service.files.file_store import FileStore
from service.media.pool import ImagePool
from service.media.refusal import Refusal
from service.openapi import render_document
from service.routes.docs import OPERATIONS
from service.streams.stream_shelf import StreamShelf

SERVICE = Path(__file__).parent.parent.parent.parent / "service"
UNDOCUMENTED = {
    "/", "/docs", "/docs/{name:str}", "/playground/{name:str}", "/schema/openapi.json"
}  # fmt: skip
ERRORS = {node.name for node in ast.parse((SERVICE / "errors.py").read_text()).body
          if isinstance(node, ast.ClassDef)}  # fmt: skip


@pytest.fixture(scope="module")
def document() -> dict:
    return msgspec.json.decode(
        render_document(OPERATIONS, OpenPaths(with_metrics=True), title="Loupe", version="1")
    )


async def test_document_is_served(service, document):
    response = await service.client.get("/schema/openapi.json")

    assert response.headers["content-type"] == "application/json"
    assert response.json()["paths"] == document["paths"]


def test_no_operation_is_described_twice():
    """Of two descriptions the first would be lost without a word."""
    described = [(operation.method, operation.path) for operation in OPERATIONS]

    assert sorted(set(described)) == sorted(described)


def raised_codes() -> set[str]:
    """Every literal code that the source makes an error of."""
    codes: set[str] = set(Refusal)
    for file in SERVICE.rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(call, ast.Call) and call.args):
                continue
            name = getattr(call.func, "id", None) or ast.unparse(call.func)
            match call.args[0]:
                case ast.Constant(value=str(code)) if name in ERRORS or name == "super().__init__":
                    codes.add(code)
    return {code for code in codes if re.fullmatch(r"[a-z]+(_[a-z]+)+|overloaded", code)}


def test_every_code_is_explained():
    assert raised_codes() - set(ERROR_CODES) == set()


def test_every_route_is_documented(document, new_engine, tmp_path):
    settings = Settings()
    pool = ImagePool(settings.media, num_processes=1)
    shelf = StreamShelf(tmp_path / "streams", resume_seconds=1, max_streams=1, max_bytes=1)
    files = FileStore(settings.files, tmp_path / "files")
    app = create_app(settings, new_engine(), pool, files, shelf=shelf)
    routes = {
        (re.sub(r":\w+}", "}", route.path), method)
        for route in app.routes
        for method in route.methods - {"OPTIONS"}
        if route.path not in UNDOCUMENTED
    }

    documented = {
        (path, method.upper()) for path, item in document["paths"].items() for method in item
    }
    assert documented == routes


def test_document_resolves_all_its_references(document):
    references = re.findall(r'"#/components/schemas/(\w+)"', msgspec.json.encode(document).decode())

    assert references
    assert set(references) <= set(document["components"]["schemas"])


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/chat/stream"])
def test_chat_is_documented_as_json_and_as_forms(document, path):
    content = document["paths"][path]["post"]["requestBody"]["content"]
    json_fields = document["components"]["schemas"]["ChatRequest"]["properties"]
    form_fields = content["multipart/form-data"]["schema"]["properties"]

    assert set(content) == {
        "application/json", "multipart/form-data", "application/x-www-form-urlencoded",
    }  # fmt: skip
    assert set(form_fields) == {*json_fields, "image", "file"}
    assert form_fields["image"]["items"]["format"] == "binary"
    assert form_fields["file"]["items"]["format"] == "binary"
    assert json_fields["input_type"]["default"] == "text_image"
    assert "default" not in form_fields["input_type"]


async def test_documented_fields_of_replies_are_the_real_ones(service, document):
    schemas = document["components"]["schemas"]
    answer = await service.client.post("/v1/chat", json={"input_type": "text_only", "text": "Hi"})
    refusal = await service.client.post("/v1/chat")
    health = await service.client.get("/v1/health")

    assert set(schemas["ChatReply"]["properties"]) == set(answer.json())
    assert set(schemas["ChatUsage"]["properties"]) == set(answer.json()["usage"])
    assert set(schemas["ErrorReply"]["properties"]) == set(refusal.json())
    assert set(schemas["Health"]["properties"]) == set(health.json())


@pytest.mark.parametrize(
    "path", ["/v1/chat", "/v1/chat/stream", "/v1/chat/completions", "/v1/files", "/v1/preview"]
)
def test_errors_are_documented_in_both_shapes(document, path):
    contents = document["paths"][path]["post"]["responses"]["400"]["content"]

    assert set(contents) == {"application/json", "application/problem+json"}


def test_every_error_code_is_in_the_document(document):
    assert all(f"`{code}`" in document["info"]["description"] for code in ERROR_CODES)


async def test_page_loads_only_what_is_served_here(service):
    page = await service.client.get("/docs")

    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'self'" in page.headers["content-security-policy"]
    for asset in assets:
        if asset != "data:,":
            response = await service.client.get(asset)
            assert asset.startswith("/")
            assert response.status_code == 200
            assert response.content


@pytest.mark.parametrize("name", ["nothing.js", "..%2f..%2fconfig.py", "index.html%00"])
async def test_only_the_page_s_files_are_served(service, name):
    response = await service.client.get(f"/docs/{name}")

    assert response.status_code == 404


def test_what_asks_for_a_key_says_so(document):
    asked = {
        path
        for path, item in document["paths"].items()
        if any("security" in operation for operation in item.values())
    }

    assert "/v1/chat/completions" in asked
    assert not asked & {"/health/live", "/health/ready", "/v1/health", "/metrics"}
    assert {"401", "403"} <= set(document["paths"]["/v1/files"]["get"]["responses"])
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
