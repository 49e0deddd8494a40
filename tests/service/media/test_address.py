import ipaddress
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.media.address import is_public, is_within, network_of


@pytest.mark.parametrize(
    "text",
    [
        "8.8.8.8",
        "93.184.215.14",
        "100.63.255.255",
        "100.128.0.0",
        "172.15.0.1",
        "172.32.0.1",
        "192.0.1.1",
        "2606:4700::1111",
        "2a00:1450:4001::1",
        pytest.param("::ffff:8.8.8.8", id="public-mapped"),
        pytest.param("64:ff9b::808:808", id="public-behind-nat64"),
    ],
)
def test_public_addresses_are_public(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("127.0.0.1", id="loopback"),
        pytest.param("127.255.255.254", id="loopback-end"),
        pytest.param("0.0.0.0", id="unspecified"),
        pytest.param("0.1.2.3", id="this-network"),
        pytest.param("10.0.0.1", id="private-10"),
        pytest.param("172.16.0.1", id="private-172"),
        pytest.param("192.168.1.1", id="private-192"),
        pytest.param("169.254.169.254", id="cloud-metadata"),
        pytest.param("168.63.129.16", id="azure-platform"),
        pytest.param("100.64.0.1", id="carrier-nat"),
        pytest.param("100.100.100.200", id="alibaba-metadata"),
        pytest.param("192.0.0.9", id="protocol-assignment"),
        pytest.param("192.0.2.1", id="documentation"),
        pytest.param("192.88.99.1", id="6to4-relay"),
        pytest.param("198.18.0.1", id="benchmark"),
        pytest.param("224.0.0.1", id="multicast"),
        pytest.param("239.255.255.255", id="multicast-end"),
        pytest.param("240.0.0.1", id="reserved"),
        pytest.param("255.255.255.255", id="broadcast"),
        pytest.param("::", id="unspecified-6"),
        pytest.param("::1", id="loopback-6"),
        pytest.param("::127.0.0.1", id="ipv4-compatible"),
        pytest.param("::ffff:127.0.0.1", id="mapped-loopback"),
        pytest.param("::ffff:10.0.0.1", id="mapped-private"),
        pytest.param("64:ff9b::a9fe:a9fe", id="nat64-metadata"),
        pytest.param("64:ff9b:1::808:808", id="local-nat64"),
        pytest.param("2001::1", id="teredo"),
        pytest.param("2001:20::1", id="orchid"),
        pytest.param("2001:db8::1", id="documentation-6"),
        pytest.param("2002:808:808::1", id="6to4"),
        pytest.param("3fff::1", id="documentation-6-new"),
        pytest.param("5f00::1", id="segment-routing"),
        pytest.param("fc00::1", id="unique-local"),
        pytest.param("fd00:ec2::254", id="aws-metadata"),
        pytest.param("fe80::1", id="link-local"),
        pytest.param("fe80::1%eth0", id="zone"),
        pytest.param("2606:4700::1%eth0", id="zone-of-public"),
        pytest.param("fec0::1", id="site-local"),
        pytest.param("ff02::1", id="multicast-6"),
        pytest.param("4000::1", id="not-given-out"),
    ],
)
def test_all_others_are_not(text):
    assert not is_public(ip_address(text))


@given(st.ip_addresses())
def test_what_the_standard_library_calls_special_is_never_public(address):
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    carries_another = address.version == 6 and address.ipv4_mapped is not None
    nat64 = address in ip_network("64:ff9b::/96")

    assert not (is_public(address) and special and not carries_another and not nat64)


@given(st.ip_addresses(v=4))
def test_an_address_inside_another_decides(address):
    mapped = ipaddress.IPv6Address((0xFFFF << 32) | int(address))
    behind_nat64 = ipaddress.IPv6Address((0x64FF9B << 96) | int(address))

    assert is_public(mapped) == is_public(behind_nat64) == is_public(address)


def test_ranges_hold_what_is_inside_another_address_too():
    networks = [ip_network("10.0.0.0/8")]

    assert is_within(ip_address("10.1.2.3"), networks)
    assert is_within(ip_address("::ffff:10.1.2.3"), networks)
    assert not is_within(ip_address("11.1.2.3"), networks)
    assert not is_within(ip_address("fd00::1"), networks)


def test_only_addresses_and_ranges_are_networks():
    assert network_of("10.0.0.0/8") == ip_network("10.0.0.0/8")
    assert network_of("::1") == ip_network("::1/128")
    assert network_of("example.com") is None
    assert network_of("10.0.0.0/33") is None
