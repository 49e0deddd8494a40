"""Which network addresses a client's URL may lead to. Pure: knows no names and opens nothing.

The standard library's `is_global` alone is not enough: it passes multicast, addresses that carry
another one inside, and ranges that only a cloud's own machines can reach.
"""

import ipaddress
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network

# All that is given out so far; leaves out 5f00::/16, fc00::/7, fe80::/10 and all not yet in use.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_NAT64 = IPv6Network("64:ff9b::/96")
_REFUSED_IPV4 = (
    IPv4Network("168.63.129.16/32"),  # Azure's own services, for its machines alone
    IPv4Network("192.0.0.0/24"),  # protocol assignments
    IPv4Network("192.88.99.0/24"),  # 6to4 relays
)
_REFUSED_IPV6 = (
    IPv6Network("2001::/23"),  # protocol assignments, Teredo among them
    IPv6Network("2001:db8::/32"),  # documentation
    IPv6Network("2002::/16"),  # 6to4: an IPv4 address is inside
    IPv6Network("3fff::/20"),  # documentation
)


def is_public(address: IPAddress) -> bool:
    """Whether an address is plain public unicast, on which anyone's web server may be.

    Where an IPv4 address is inside (mapped, or behind a NAT64), that one decides.
    """
    if isinstance(address, IPv6Address):
        inner = _inner(address)
        if inner is not None:
            return is_public(inner)
        if address.scope_id is not None or address not in _GLOBAL_UNICAST:
            return False
        refused = any(address in network for network in _REFUSED_IPV6)
    else:
        refused = any(address in network for network in _REFUSED_IPV4)
    special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not special and not refused


def is_within(address: IPAddress, networks: Iterable[IPNetwork]) -> bool:
    """Whether an address, or the IPv4 address inside it, is in one of the networks."""
    plain = (_inner(address) if isinstance(address, IPv6Address) else None) or address
    return any(plain in network for network in networks)


def network_of(text: str) -> IPNetwork | None:
    """Read an address or a CIDR range; None for anything else, such as a name."""
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _inner(address: IPv6Address) -> IPv4Address | None:
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped
