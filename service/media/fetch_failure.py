"""Why a picture could not be fetched: the code a client sees, and a word for the log alone."""

from enum import StrEnum


class FetchVerdict(StrEnum):
    """What a client is told; the values are its codes.

    REFUSED is one answer to what may not be asked and to what cannot be reached, names that do not
    resolve among it: the difference would be a map of our network.
    """

    SCHEME = "image_url_scheme"
    INVALID = "image_url_invalid"
    REFUSED = "image_url_refused"
    FAILED = "image_fetch_failed"
    TIMEOUT = "image_fetch_timeout"


class FetchFailed(Exception):
    """A picture could not be fetched. reason: for the log, never for the client."""

    def __init__(self, verdict: FetchVerdict, reason: str) -> None:
        super().__init__(verdict)
        self.verdict = verdict
        self.reason = reason
