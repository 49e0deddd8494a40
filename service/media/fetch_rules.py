"""Decides whom the service may ask for a picture: by port, host and every address of the host."""

import ipaddress
import socket
from collections.abc import Sequence

from service.media.address import IPAddress, is_public, is_within, network_of
from service.media.fetch_failure import FetchFailed, FetchVerdict
from service.media.fetch_settings import FetchSettings
from service.media.remote_url import RemoteUrl, matches_host


class FetchRules:
    """The settings' lists, and the rule that all which is not listed must be public."""

    def __init__(self, settings: FetchSettings) -> None:
        self._settings = settings
        self._headers = {host.lower(): headers for host, headers in settings.fetch_headers.items()}
        private = {host: network_of(host) for host in settings.fetch_private_hosts}
        self._private_names = [host for host, network in private.items() if network is None]
        self._private_networks = [network for network in private.values() if network is not None]

    def check_url(self, url: RemoteUrl) -> None:
        """Refuse a port or a host.

        Raises:
            FetchFailed: REFUSED.
        """
        settings = self._settings
        if url.port not in settings.fetch_ports:
            raise FetchFailed(FetchVerdict.REFUSED, "port")
        if matches_host(url.host, settings.fetch_denied_hosts):
            raise FetchFailed(FetchVerdict.REFUSED, "host denied")
        if settings.fetch_allowed_hosts and not matches_host(
            url.host, settings.fetch_allowed_hosts
        ):
            raise FetchFailed(FetchVerdict.REFUSED, "host not allowed")

    def check_addresses(self, host: str, addresses: Sequence[IPAddress]) -> None:
        """Refuse a host if a single one of its addresses is not to be dialled.

        Raises:
            FetchFailed: REFUSED.
        """
        if not addresses:
            raise FetchFailed(FetchVerdict.REFUSED, "no address")
        if self._is_private_name(host):
            return
        for address in addresses:
            if is_within(address, self._private_networks):
                continue
            if not is_public(address):
                raise FetchFailed(FetchVerdict.REFUSED, "address not public")
            if is_own_address(address):
                raise FetchFailed(FetchVerdict.REFUSED, "own address")

    def headers_for(self, url: RemoteUrl) -> dict[str, str]:
        """Give the headers that are set for a host, unless they would cross a network in clear."""
        private = self._is_private_name(url.host)
        address = network_of(url.host)
        if address is not None:
            private = is_within(address.network_address, self._private_networks)
        if url.scheme != "https" and not private:
            return {}
        return self._headers.get(url.host, {})

    def _is_private_name(self, host: str) -> bool:
        return matches_host(host, self._private_names)


def resolve(host: str, port: int) -> list[IPAddress]:
    """Ask the system's resolver for a host's addresses; it blocks.

    Raises:
        OSError, UnicodeError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ipaddress.ip_address(address[4][0]) for address in found]


def is_own_address(address: IPAddress) -> bool:
    """Whether a public address is this machine's: what listens there may trust its own machine.

    Connecting a datagram socket sends nothing; it only asks for the route.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((str(address), 9))
        except OSError:
            return False  # no route: dialling it will fail as well
        return ipaddress.ip_address(probe.getsockname()[0]) == address
