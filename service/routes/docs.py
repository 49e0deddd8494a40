"""The API document and the page that shows it. The page loads nothing from elsewhere."""

from pathlib import Path

from litestar import get
from litestar.exceptions import NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse

from service.openapi import render_document
from service.routes.files_docs import FILE_OPERATIONS
from service.routes.native_docs import NATIVE_OPERATIONS
from service.version import version

OPERATIONS = (*NATIVE_OPERATIONS, *FILE_OPERATIONS)

_ASSETS = Path(__file__).parent.parent / "static" / "docs"
_MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
}
# The browser itself refuses what the page would fetch from elsewhere.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def docs_handlers() -> list[HTTPRouteHandler]:
    """Make the handlers to register; everything they serve is read and rendered here, once."""
    document = render_document(OPERATIONS, title="Loupe", version=version())
    files = {
        file.name: (file.read_bytes(), _MEDIA_TYPES[file.suffix])
        for file in _ASSETS.iterdir()
        if file.suffix in _MEDIA_TYPES
    }

    @get("/schema/openapi.json")
    async def openapi_document() -> ASGIResponse:
        return ASGIResponse(body=document, media_type="application/json")

    @get("/docs")
    async def page() -> ASGIResponse:
        return _file(*files["index.html"])

    @get("/docs/{name:str}")
    async def asset(name: FromPath[str]) -> ASGIResponse:
        if name not in files:
            raise NotFoundException
        return _file(*files[name])

    return [openapi_document, page, asset]


def _file(content: bytes, media_type: str) -> ASGIResponse:
    return ASGIResponse(
        body=content,
        media_type=media_type,
        headers={
            "cache-control": "max-age=3600",
            "content-security-policy": _CONTENT_SECURITY_POLICY,
            "x-content-type-options": "nosniff",
        },
    )
