"""The key file and the keys in use."""

import contextlib
import hashlib
import os

import pytest
import structlog

from service.access.caller import Caller, KeyLimits
from service.access.guard import require_admin
from service.access.key_file import KeyFileError, add_key, read_keys
from service.access.key_ring import KeyRing
from service.errors import PermissionDenied
from service.request_log import RequestRecord


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.toml"


def add(path, name="alice", *, tenant=None, is_admin=False) -> bytes:
    return add_key(path, name, tenant=tenant, is_admin=is_admin).encode()


def found(ring: KeyRing, key: bytes) -> Caller:
    caller = ring.find(key)
    assert caller is not None
    return caller


def touch_later(path) -> None:
    """Make sure that the change shows, however coarse the file system's clock is."""
    state = path.stat()
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1_000_000))


def test_an_added_key_is_found_and_is_not_in_the_file(path):
    key = add(path, "alice", tenant="team-a", is_admin=True)

    assert KeyRing(path).find(key) == Caller("alice", "team-a", is_admin=True)
    assert key.decode() not in path.read_text()
    assert hashlib.sha256(key).hexdigest() in path.read_text()


def test_a_key_without_a_tenant_is_a_tenant_of_its_own(path):
    keys = [add(path, name) for name in ("alice", "bob")]

    ring = KeyRing(path)
    assert [found(ring, key).tenant for key in keys] == ["alice", "bob"]


def test_keys_are_long_and_never_the_same(path):
    keys = {add(path) for _ in range(20)}

    assert len(keys) == 20
    assert all(key.startswith(b"loupe_") and len(key) >= 6 + 43 for key in keys)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(bytes.swapcase, id="other-case"),
        pytest.param(lambda key: key[:-1], id="shorter"),
        pytest.param(lambda key: key + b"x", id="longer"),
        pytest.param(lambda key: b"", id="empty"),
        pytest.param(lambda key: b"\xff" + key, id="no-text"),
        pytest.param(lambda key: hashlib.sha256(key).hexdigest().encode(), id="its-own-hash"),
    ],
)
def test_what_is_not_the_key_is_not_found(path, change):
    key = add(path)

    assert KeyRing(path).find(change(key)) is None


def test_limits_are_kept_with_the_caller(path):
    digest = hashlib.sha256(b"k").hexdigest()
    path.write_text(
        f'[[keys]]\nname = "a"\nsha256 = "{digest}"\nmax_concurrency = 2\n'
        "requests_per_minute = 3\ntokens_per_minute = 4\nweight = 0.5\npriority = -1\n"
    )

    assert found(KeyRing(path), b"k").limits == KeyLimits(2, 3, 4, 0.5, -1)


def test_two_keys_of_one_name_are_both_good(path):
    old, new = add(path), add(path)

    ring = KeyRing(path)
    assert found(ring, old) == found(ring, new)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("keys = ", id="no-toml"),
        pytest.param("[[keys]]\nname = 'a'\n", id="no-hash"),
        pytest.param("[[keys]]\nname = 'a'\nsha256 = 'loupe_secret'\n", id="key-instead-of-hash"),
        pytest.param(f"[[keys]]\nname = 'a b'\nsha256 = '{'0' * 64}'\n", id="bad-name"),
        pytest.param(f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\nrole = 1\n", id="unknown"),
        pytest.param(
            f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\nweight = 0\n", id="out-of-bounds"
        ),
        pytest.param(f"[[keys]]\nname = 'a'\nsha256 = '{'0' * 64}'\n" * 2, id="twice"),
        pytest.param("\udcff", id="no-utf-8"),
    ],
)
def test_a_file_with_a_mistake_is_refused_whole_and_shows_nothing_of_it(path, text):
    path.write_text(text, errors="surrogateescape")

    with pytest.raises(KeyFileError, match=r"keys\.toml") as refusal:
        read_keys(path)

    assert "secret" not in str(refusal.value)


def test_a_missing_file_is_refused(path):
    with pytest.raises(KeyFileError, match="No such file"):
        KeyRing(path)


@pytest.mark.parametrize("name", ["", "a b", 'a"\nadmin = true', "-a", "a" * 65, "é"])
def test_a_bad_name_is_refused_and_the_file_stays(path, name):
    add(path)
    before = path.read_text()

    with pytest.raises(KeyFileError):
        add(path, name)

    assert path.read_text() == before


def test_nothing_is_added_to_a_broken_file(path):
    path.write_text("keys = ")

    with pytest.raises(KeyFileError):
        add(path)

    assert path.read_text() == "keys = "


def test_a_changed_file_is_read_again(path):
    old = add(path)
    ring = KeyRing(path)
    new = add(path, "bob")
    before = ring.find(new)
    touch_later(path)
    ring.refresh()

    assert before is None
    assert (found(ring, old).name, found(ring, new).name) == ("alice", "bob")


def test_a_removed_key_is_no_longer_good(path):
    key = add(path)
    ring = KeyRing(path)
    path.write_text("")
    touch_later(path)
    ring.refresh()

    assert ring.find(key) is None


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("keys = "), os.remove])
def test_a_file_that_turns_bad_leaves_the_keys_and_is_told_once(path, spoil):
    key = add(path)
    ring = KeyRing(path)
    spoil(path)
    with structlog.testing.capture_logs() as log:
        ring.refresh()
        ring.refresh()

    (event,) = log
    assert (event["event"], event["log_level"]) == ("key_file_refused", "error")
    assert found(ring, key).name == "alice"


@pytest.mark.parametrize(("is_admin", "passes"), [(True, True), (False, False)])
def test_only_admins_pass_where_admins_are_required(is_admin, passes):
    record = RequestRecord("id", Caller("alice", "alice", is_admin))

    with contextlib.nullcontext() if passes else pytest.raises(PermissionDenied):
        require_admin(record)
