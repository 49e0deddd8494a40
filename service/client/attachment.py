"""From a word of the command line to a part of the question: a file, a URL, an id or text."""

import base64
import mimetypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from service.client.failure import ClientMistake
from service.media.container import kind_of, sniff

Part = dict[str, object]

_FILE_ID = re.compile(r"file-[A-Za-z0-9]{1,64}")
_URL = re.compile(r"(?i)(https?|data):")
_PATH_STARTS = ("/", "./", "../", "~")
_MEDIA_TYPES = {"mov": "video/quicktime", "mkv": "video/x-matroska"}


class Attachments:
    """Reads words.

    pages: of documents. stdin: read for `-`, once. file_name: tells an uploaded file's name by its
    id.
    """

    def __init__(self, pages: str | None, stdin: BinaryIO, file_name: Callable[[str], str]) -> None:
        self._pages = pages
        self._stdin = stdin
        self._file_name = file_name

    def part(self, word: str) -> Part:
        """Make a word a part of the question.

        Raises:
            ClientMistake: a file that is not there, or of no kind that can be shown.
        """
        if word == "-":
            return self._read_part(self._stdin.read(), "the standard input")
        if _FILE_ID.fullmatch(word):
            return self._uploaded(word)
        if _URL.match(word):
            return _linked(word)
        path = Path(word).expanduser()
        if _is_file(path):
            return self._read_part(_read(path), word)
        if _looks_like_path(word):
            raise ClientMistake(f"there is no file {word}")
        return _text(word)

    def _read_part(self, encoded: bytes, name: str) -> Part:
        if not encoded:
            raise ClientMistake(f"{name} is empty")
        match kind_of(encoded):
            case "image":
                return _image(_data_url(encoded))
            case "video":
                return _video(_data_url(encoded))
            case "document":
                return self._document({"file_data": _data_url(encoded)})
            case None:
                return _decoded_text(encoded, name)

    def _uploaded(self, file_id: str) -> Part:
        if _media_type(self._file_name(file_id)).startswith("video/"):
            return _video(file_id)
        return self._document({"file_id": file_id})

    def _document(self, file: dict[str, object]) -> Part:
        if self._pages is not None:
            file["pages"] = self._pages
        return {"type": "file", "file": file}


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _image(url: str) -> Part:
    return {"type": "image_url", "image_url": {"url": url}}


def _video(url: str) -> Part:
    return {"type": "video_url", "video_url": {"url": url}}


def _linked(url: str) -> Part:
    if url[:5].lower() == "data:":
        return _video(url) if url[5:].lower().startswith("video/") else _image(url)
    media_type = _media_type(urlsplit(url).path)
    if media_type == "application/pdf":
        raise ClientMistake(f"a PDF is not fetched by its URL: download {url} and name the file")
    return _video(url) if media_type.startswith("video/") else _image(url)


def _decoded_text(encoded: bytes, name: str) -> Part:
    try:
        return _text(encoded.decode())
    except UnicodeDecodeError as error:
        raise ClientMistake(f"{name} is no picture, PDF, video or text") from error


def _data_url(encoded: bytes) -> str:
    file_format = sniff(encoded) or ""
    match kind_of(encoded):
        case "document":
            media_type = "application/pdf"
        case kind:
            media_type = _MEDIA_TYPES.get(file_format, f"{kind}/{file_format}")
    return f"data:{media_type};base64,{base64.b64encode(encoded).decode()}"


def _media_type(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""


def _is_file(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a question may be longer than any path, or hold a null
        return False


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ClientMistake(f"cannot read {path}: {error.strerror}") from error


def _looks_like_path(word: str) -> bool:
    """Tell a misspelt file from a question: those have spaces and no suffix of a picture."""
    if any(letter.isspace() for letter in word):
        return False
    kind = _media_type(word).partition("/")[0]
    return word.startswith(_PATH_STARTS) or kind in ("image", "video") or word.endswith(".pdf")
