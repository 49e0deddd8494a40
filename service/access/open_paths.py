"""The list of what anyone may ask for; every other path is guarded, the unknown ones too.

Paths are matched whole and as they came, and no name in the list holds a slash: whatever the router
may make of an odd spelling, it cannot be something else than what was matched here.
"""

import re

_PAGES = r"/|/docs(/[\w.-]+)?|/schema/openapi\.json|/playground(/[\w.-]+)?"
# Only what costs nothing to answer: a probe that makes the model work needs a key.
_HEALTH = r"/health/(live|ready|startup)|/v1/health"
_METRICS = r"/metrics"


class OpenPaths:
    """What needs no key."""

    def __init__(self, *, with_metrics: bool) -> None:
        patterns = [_PAGES, _HEALTH, *([_METRICS] if with_metrics else [])]
        self._open = re.compile(f"({'|'.join(patterns)})/?", re.ASCII)

    def __contains__(self, path: str) -> bool:
        return self._open.fullmatch(path) is not None


_health = re.compile(f"({_HEALTH})/?", re.ASCII)


def is_health(path: str) -> bool:
    """Say whether this is a probe's path: answered under any name and in any crowd."""
    return _health.fullmatch(path) is not None
