"""The API document and the page that shows it. The page loads nothing from elsewhere."""

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse

from service.access.open_paths import OpenPaths
from service.http.static_folder import FOLDER, StaticFolder
from service.openapi import render_document
from service.routes.admin_docs import ADMIN_OPERATIONS
from service.routes.files_docs import FILE_OPERATIONS
from service.routes.health_docs import HEALTH_OPERATIONS
from service.routes.metrics_docs import METRICS_OPERATIONS
from service.routes.native_docs import NATIVE_OPERATIONS
from service.routes.openai_docs import OPENAI_OPERATIONS
from service.routes.preview_docs import PREVIEW_OPERATIONS
from service.routes.resume_docs import RESUME_OPERATIONS
from service.version import version

OPERATIONS = (
    *NATIVE_OPERATIONS,
    *HEALTH_OPERATIONS,
    *OPENAI_OPERATIONS,
    *FILE_OPERATIONS,
    *PREVIEW_OPERATIONS,
    *RESUME_OPERATIONS,
    *ADMIN_OPERATIONS,
    *METRICS_OPERATIONS,
)

# The browser itself refuses what the page would fetch from elsewhere.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def docs_handlers() -> list[HTTPRouteHandler]:
    """Make the handlers to register; everything they serve is read and rendered here, once."""
    document = render_document(
        OPERATIONS, OpenPaths(with_metrics=True), title="Loupe", version=version()
    )
    folder = StaticFolder(FOLDER / "docs", _CONTENT_SECURITY_POLICY)

    @get("/schema/openapi.json")
    async def openapi_document() -> ASGIResponse:
        return ASGIResponse(body=document, media_type="application/json")

    @get("/docs")
    async def page() -> ASGIResponse:
        return folder.reply("index.html")

    @get("/docs/{name:str}")
    async def asset(name: FromPath[str]) -> ASGIResponse:
        return folder.reply(name)

    return [openapi_document, page, asset]
