"""Which pictures the service gets from elsewhere, and how much time and memory that may take."""

from typing import Annotated, TypeAlias

import msgspec

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Seconds: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Host: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.:-]+$")]
HostPattern: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^(\*\.)?[A-Za-z0-9_.:-]+$")]
HostOrNetwork: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"^((\*\.)?[A-Za-z0-9_.-]+|[0-9A-Fa-f.:]+(/[0-9]{1,3})?)$")
]
HeaderName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9-]+$")]
HeaderValue: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[!-~]([ -~]*[!-~])?$")]


class FetchSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How pictures named by http and https URLs are fetched.

    fetch_urls: whether they are; where it is off, pictures come within requests or as
        uploaded files.
    fetch_allowed_hosts: hosts that may be asked, such as `cdn.example.com`, or `*.example.com` for
        all below it; empty is every public one.
    fetch_denied_hosts: hosts that may not, in the same form; they win.
    fetch_private_hosts: hosts, addresses or ranges such as `10.1.0.0/16` that may be asked although
        they are not public. Whoever may ask this service can read all pictures there.
    fetch_ports: ports that may be asked.
    fetch_headers: headers for a host: `{"cdn.example.com": {"Authorization": "Bearer …"}}`, as
        JSON or as a table of the settings file. Sent over https, or to a private host, and never to
        another host, in place of the usual ones of the same name.
    fetch_timeout_seconds: for one picture, redirects included.
    fetch_total_seconds: for all pictures of a request.
    max_request_fetches: pictures that are fetched at once for one request.
    max_worker_fetches: the same for a web worker; each may take max_image_bytes of memory.
    """

    fetch_urls: bool = True
    fetch_allowed_hosts: tuple[HostPattern, ...] = ()
    fetch_denied_hosts: tuple[HostPattern, ...] = ()
    fetch_private_hosts: tuple[HostOrNetwork, ...] = ()
    fetch_ports: tuple[Port, ...] = (80, 443)
    fetch_headers: dict[Host, dict[HeaderName, HeaderValue]] = {}
    fetch_timeout_seconds: Seconds = 10.0
    fetch_total_seconds: Seconds = 20.0
    max_request_fetches: Count = 4
    max_worker_fetches: Count = 32
