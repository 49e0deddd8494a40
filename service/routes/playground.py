"""The playground at `/`: one page to try the service with. It loads nothing from elsewhere."""

from litestar import get
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath
from litestar.response.base import ASGIResponse

from service.http.static_folder import FOLDER, StaticFolder

# Nothing but the service's own files runs, and whatever a model writes stays text.
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def playground_handlers() -> list[HTTPRouteHandler]:
    """Make the handlers to register."""
    folder = StaticFolder(FOLDER / "playground", _CONTENT_SECURITY_POLICY)

    @get("/")
    async def page() -> ASGIResponse:
        return folder.reply("index.html")

    @get("/playground/{name:str}")
    async def asset(name: FromPath[str]) -> ASGIResponse:
        return folder.reply(name)

    return [page, asset]
