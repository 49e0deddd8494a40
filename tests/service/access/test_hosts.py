from typing import Any

import pytest

from service.access.hosts import Hosts
from service.errors import RequestInvalid


def scope(*hosts: bytes, version: str = "1.1") -> Any:
    return {"http_version": version, "headers": [(b"host", host) for host in hosts]}


@pytest.mark.parametrize(
    "host",
    [b"loupe.example", b"LOUPE.example:8000", b"a.b.inner.example", b"[::1]", b"[::1]:8000"],
)
def test_names_on_the_list_are_answered(host):
    Hosts(["Loupe.example", "*.inner.example", "[::1]"]).check(scope(host))


@pytest.mark.parametrize(
    "hosts",
    [
        pytest.param([], id="none"),
        pytest.param([b""], id="empty"),
        pytest.param([b"evil.example"], id="other"),
        pytest.param([b"loupe.example.evil.example"], id="ours-as-a-beginning"),
        pytest.param([b"evilloupe.example"], id="ours-as-an-end"),
        pytest.param([b"inner.example"], id="the-star-s-own-name"),
        pytest.param([b"loupe.example", b"loupe.example"], id="two"),
        pytest.param([b"loupe.example:80:80"], id="two-ports"),
        pytest.param([b"loupe.example/x"], id="path"),
        pytest.param([b"loupexexample"], id="dot-is-no-pattern"),
        pytest.param([b"\xff"], id="no-ascii"),
    ],
)
def test_other_names_are_refused(hosts):
    with pytest.raises(RequestInvalid) as refusal:
        Hosts(["loupe.example", "*.inner.example"]).check(scope(*hosts))

    assert refusal.value.code == "host_invalid"


def test_without_a_list_every_name_is_answered_but_there_must_be_one():
    hosts = Hosts([])
    hosts.check(scope(b"anything"))
    hosts.check(scope(version="1.0"))  # a protocol without names

    for faulty in (scope(), scope(b"a", b"b")):
        with pytest.raises(RequestInvalid):
            hosts.check(faulty)
