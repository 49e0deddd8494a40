"""The file of API keys: who has one, and what it allows. It holds hashes, never a key.

A key is 256 random bits, so one round of SHA-256 hides it: nothing is gained by a slow hash where
there is nothing to guess.
"""

import datetime as dt
import hashlib
import secrets
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from service.access.caller import Caller, KeyLimits

# Secret scanners know keys by such a beginning.
KEY_PREFIX = "loupe_"

_NUM_KEY_BYTES = 32

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class KeyFileError(Exception):
    """The file cannot be used; the message is for the operator and holds nothing of a key."""


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[keys]]` table. A name may have several, so that a key can be replaced without a gap.

    sha256: of the key, in hexadecimal. created: for people. tenant: whose data it sees; its name
    where none is given. admin: opens the admin routes. The rest are `KeyLimits`.
    """

    name: Name
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    created: dt.date | None = None
    tenant: Name | None = None
    admin: bool = False
    max_concurrency: _Count | None = None
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    priority: int = 0

    @property
    def caller(self) -> Caller:
        """Who asks with this key."""
        limits = KeyLimits(
            max_concurrency=self.max_concurrency,
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            weight=self.weight,
            priority=self.priority,
        )
        return Caller(self.name, self.tenant or self.name, self.admin, limits)


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[Key] = []


def read_keys(path: Path) -> list[Key]:
    """Read the file, all of it or nothing.

    Raises:
        KeyFileError: it cannot be read, is no TOML, has an unknown field or a key twice.
    """
    try:
        keys = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _KeyFile).keys
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise KeyFileError(f"key file {path}: {error}") from error
    if len({key.sha256 for key in keys}) < len(keys):
        raise KeyFileError(f"key file {path}: a key is there twice")
    return keys


def add_key(path: Path, name: str, *, tenant: str | None, is_admin: bool) -> str:
    """Append a new key's hash to the file, which is made where there is none.

    Returns:
        The key. It is nowhere else.

    Raises:
        KeyFileError: the name or the tenant is malformed, or the file cannot be used.
    """
    if path.exists():
        read_keys(path)  # nothing is added to a file that would not be read
    key = KEY_PREFIX + secrets.token_urlsafe(_NUM_KEY_BYTES)
    today = dt.datetime.now(dt.UTC).date()
    sha256 = digest(key.encode()).hex()
    entry: dict[str, object] = {"name": name, "sha256": sha256, "created": today}
    if tenant is not None:
        entry["tenant"] = tenant
    if is_admin:
        entry["admin"] = True
    try:
        msgspec.convert(entry, Key)
    except msgspec.ValidationError as error:
        raise KeyFileError(f"names are of letters, digits and . _ @ -: {error}") from error
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(_as_table(entry))
    except OSError as error:
        raise KeyFileError(f"key file {path}: {error.strerror}") from error
    return key


def digest(key: bytes) -> bytes:
    """Hash a key as the file has it."""
    return hashlib.sha256(key).digest()


def _as_table(entry: dict[str, object]) -> str:
    # Every text in it has passed a pattern without quotes and backslashes.
    lines = ["", "[[keys]]"]
    for name, value in entry.items():
        match value:
            case bool():
                lines.append(f"{name} = {str(value).lower()}")
            case str():
                lines.append(f'{name} = "{value}"')
            case _:
                lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"
