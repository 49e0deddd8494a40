"""Which names the service answers to: the Host header against a list.

A page that makes its own name resolve to this machine gets no further than here. The framework's
check makes regular expressions of the names and answers in a shape of its own.
"""

from collections.abc import Iterable

from litestar.types import HTTPScope

from service.errors import RequestInvalid


class Hosts:
    """The names on the list; without any, every name."""

    def __init__(self, names: Iterable[str]) -> None:
        """names: in any case, without port; `*.example.com` stands for every name below it."""
        lowered = [name.lower().encode("ascii") for name in names]
        self._exact = frozenset(name for name in lowered if not name.startswith(b"*."))
        self._suffixes = tuple(name[1:] for name in lowered if name.startswith(b"*."))

    def check(self, scope: HTTPScope) -> None:
        """Let a request pass that is meant for this service.

        Raises:
            RequestInvalid: no Host header, or several, or a name that is not on the list.
        """
        found = [value for name, value in scope["headers"] if name == b"host"]
        if len(found) > 1:
            raise _refusal()
        if not self._exact and not self._suffixes:
            if not found and scope["http_version"] != "1.0":  # which knows no such header
                raise _refusal()
            return
        name = _without_port(found[0]).lower() if found else b""
        if name not in self._exact and not (self._suffixes and name.endswith(self._suffixes)):
            raise _refusal()


def _refusal() -> RequestInvalid:
    return RequestInvalid("host_invalid", "The Host header is missing or not one of this service.")


def _without_port(host: bytes) -> bytes:
    name, colon, port = host.rpartition(b":")
    return name if colon and port.isdigit() else host
