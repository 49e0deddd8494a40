"""The version of this service, as its package was built."""

import importlib.metadata


def version() -> str:
    """Return the version; "0+source" when run from a source tree that is not installed."""
    try:
        return importlib.metadata.version("loupe")
    except importlib.metadata.PackageNotFoundError:
        return "0+source"
