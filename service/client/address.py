"""Where the server is that a command asks, and the key it presents."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from service.client.failure import ClientMistake

DEFAULT_URL = "http://127.0.0.1:8000"
URL_VARIABLE = "LOUPE_URL"
KEY_VARIABLE = "LOUPE_API_KEY"


class Address(NamedTuple):
    """A server. url: without a slash at its end. headers: for every request."""

    url: str
    headers: dict[str, str]


def address_of(url: str | None, key_file: str | None, environ: Mapping[str, str]) -> Address:
    """Find the server and the key; what was typed goes before what is in the environment.

    Raises:
        ClientMistake: no URL, an unreadable key file, or a key that no header can hold.
    """
    address = (url or environ.get(URL_VARIABLE) or DEFAULT_URL).rstrip("/")
    try:
        parts = urlsplit(address)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if "@" in address:
        raise ClientMistake("leave user and password out of the URL; a key has --api-key-file")
    if not is_usable:
        raise ClientMistake(f"{address} is not a server's URL; one looks like {DEFAULT_URL}")
    key = _read_key(Path(key_file)) if key_file else environ.get(KEY_VARIABLE, "").strip()
    if not key:
        return Address(address, {})
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise ClientMistake("the API key has characters that no key has")
    return Address(address, {"authorization": f"Bearer {key}"})


def _read_key(path: Path) -> str:
    try:
        key = path.expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ClientMistake(f"cannot read the API key from {path}: {reason}") from error
    if not key:
        raise ClientMistake(f"{path} is empty; it should hold an API key")
    return key
