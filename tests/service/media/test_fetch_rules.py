from ipaddress import ip_address

import pytest

from service.media import fetch_rules
from service.media.fetch_failure import FetchFailed, FetchVerdict
from service.media.fetch_rules import FetchRules, is_own_address
from service.media.fetch_settings import FetchSettings

PUBLIC = ip_address("93.184.215.14")


def test_an_address_of_this_machine_is_told():
    assert is_own_address(ip_address("127.0.0.1"))
    assert not is_own_address(PUBLIC)


def test_this_machines_own_public_address_is_refused_unless_named(monkeypatch):
    monkeypatch.setattr(fetch_rules, "is_own_address", lambda address: address == PUBLIC)

    with pytest.raises(FetchFailed) as refusal:
        FetchRules(FetchSettings()).check_addresses("a.example", [PUBLIC])
    assert refusal.value.verdict == FetchVerdict.REFUSED
    named = FetchSettings(fetch_private_hosts=("93.184.215.14",))
    FetchRules(named).check_addresses("a.example", [PUBLIC])


def test_a_name_without_addresses_is_refused():
    with pytest.raises(FetchFailed):
        FetchRules(FetchSettings()).check_addresses("a.example", [])
