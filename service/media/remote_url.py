"""A client's URL, read once and strictly; nothing behind this reads URL text again."""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, cast
from urllib.parse import quote, urljoin, urlsplit

import idna

from service.media.address import network_of

_MAX_CHARS = 8192
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DEFAULT_PORTS = {"http": 80, "https": 443}
# No user info, no zone id and no percent escape has a place in it.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@%\\]+))(?::([0-9]{0,5}))?", re.ASCII)
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_MAX_NAME_CHARS = 253


class UrlInvalid(Exception):
    """A text is no URL that is fetched. has_foreign_scheme: it is one of another scheme."""

    def __init__(self, *, has_foreign_scheme: bool = False) -> None:
        super().__init__()
        self.has_foreign_scheme = has_foreign_scheme


class RemoteUrl(NamedTuple):
    """Where to ask for what.

    host: in lower case, ASCII, without a trailing dot or an IPv6 address's brackets. target: path
    and query, ASCII.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """The host as a Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def followed_to(self, location: str) -> "RemoteUrl":
        """Read a redirect's Location, which may be relative to this URL.

        Raises:
            UrlInvalid: it leads to no such URL.
        """
        try:
            text = urljoin(f"{self.scheme}://{self.host_header}{self.target}", location)
        except ValueError:
            raise UrlInvalid from None
        # Joining drops the tabs and line ends that would be refused.
        return _parsed(text if _is_printable(location) else location)


def parse_remote_url(text: str) -> RemoteUrl:
    """Read an absolute http or https URL of at most 8 KB.

    Outside ASCII, a host is read as IDNA and a path as UTF-8. Refused are user info, backslashes,
    spaces and control characters, zone ids, an empty host and a port that is no number.

    Raises:
        UrlInvalid: anything else.
    """
    return _parsed(text)


def matches_host(host: str, patterns: Sequence[str]) -> bool:
    """Whether a host is one of the names; `*.example.com` stands for all below it, at any depth."""
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in (pattern.lower().rstrip(".") for pattern in patterns)
    )


def _parsed(text: str) -> RemoteUrl:
    if len(text) > _MAX_CHARS:
        raise UrlInvalid
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise UrlInvalid
    if scheme[1].lower() not in _DEFAULT_PORTS:
        raise UrlInvalid(has_foreign_scheme=True)
    if not _is_printable(text):
        raise UrlInvalid
    try:
        parts = urlsplit(text)
    except ValueError:
        raise UrlInvalid from None
    authority = _AUTHORITY.fullmatch(parts.netloc)
    if authority is None:
        raise UrlInvalid
    literal, name, port = authority.groups()
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return RemoteUrl(
        # The text above is one of the two.
        scheme=cast("Literal['http', 'https']", parts.scheme),
        host=_literal(literal) if literal else _name(name),
        port=int(port) if port else _DEFAULT_PORTS[parts.scheme],
        target=quote(target, safe="".join(map(chr, range(0x21, 0x7F)))),
    )


def _is_printable(text: str) -> bool:
    return text.isprintable() and " " not in text and "\\" not in text


def _literal(text: str) -> str:
    network = network_of(text)
    if network is None or network.version == 4:
        raise UrlInvalid
    return str(network.network_address)


def _name(text: str) -> str:
    """Bring a host's name into the form that is looked up and compared."""
    name = text.lower()
    if not name.isascii() or "xn--" in name:
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except UnicodeError:  # idna's own errors are of this kind
            raise UrlInvalid from None
    name = name.removesuffix(".")
    if len(name) > _MAX_NAME_CHARS or not _NAME.fullmatch(name):
        raise UrlInvalid
    return name
