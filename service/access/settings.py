"""The settings of who may ask. Nothing secret is among them: keys are in a file, as hashes."""

from typing import Annotated

import msgspec

# An origin as browsers send it: lower case, no path, no trailing slash.
Origin = Annotated[str, msgspec.Meta(pattern=r"^https?://[a-z0-9.\[\]:_-]+$")]
Host = Annotated[str, msgspec.Meta(pattern=r"^(\*\.)?[A-Za-z0-9.\[\]:_-]+$")]


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who may ask, and from where.

    api_keys: TOML file of API keys, written by `loupe keys add`; a change counts within seconds.
        None lets anyone ask who reaches the port.
    open_metrics: answer /metrics without a key.
    allowed_hosts: the names in the Host header that are answered, without a port; `*.example.com`
        takes every name below it; without a list, every name is.
    cors_origins: origins whose pages may call from a browser, such as `https://app.example.com`;
        without a list, only the service's own pages may.
    """

    api_keys: str | None = None
    open_metrics: bool = False
    allowed_hosts: tuple[Host, ...] = ()
    cors_origins: tuple[Origin, ...] = ()
