"""A folder of files for browsers, read once and served with a policy that lets nothing else in."""

from pathlib import Path

from litestar.exceptions import NotFoundException
from litestar.response.base import ASGIResponse

FOLDER = Path(__file__).parents[1] / "static"

_MEDIA_TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}


class StaticFolder:
    """The files of one folder, by name; others in it are not served."""

    def __init__(self, folder: Path, content_security_policy: str) -> None:
        self._files = {
            file.name: (file.read_bytes(), _MEDIA_TYPES[file.suffix])
            for file in folder.iterdir()
            if file.suffix in _MEDIA_TYPES
        }
        self._headers = {
            # Asked for anew at each visit: after an update, pages must fit the service.
            "cache-control": "no-cache",
            "content-security-policy": content_security_policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }

    def reply(self, name: str) -> ASGIResponse:
        """Serve one file.

        Raises:
            NotFoundException: there is none of this name.
        """
        if name not in self._files:
            raise NotFoundException
        content, media_type = self._files[name]
        return ASGIResponse(body=content, media_type=media_type, headers=self._headers)
