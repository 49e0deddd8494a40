"""Where a request's time went, under the same names in the log, the replies and their headers."""

from collections.abc import Iterator
from typing import Annotated

import msgspec
from msgspec import Meta


class StageTimes(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Milliseconds of every stage that took place; filled in on the request's way through.

    The engine's stages are those of the first answer.
    """

    image_fetch: Annotated[
        float | None, Meta(description="Getting files from where URLs point.")
    ] = None
    image_decode: Annotated[float | None, Meta(description="Decoding and resizing images.")] = None
    prompt: Annotated[float | None, Meta(description="Making the text tokens.")] = None
    queue: Annotated[float | None, Meta(description="Waiting in the engine.")] = None
    vision: Annotated[float | None, Meta(description="Encoding the images in the engine.")] = None
    prefill: Annotated[
        float | None, Meta(description="From the queue's end to the first token, without `vision`.")
    ] = None
    decode: Annotated[float | None, Meta(description="From the first token to the last.")] = None
    total: Annotated[
        float | None, Meta(description="Since the request's arrival, everything included.")
    ] = None

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing took place yet."""
        return next(self._measured(), None) is None

    def facts(self) -> dict[str, float]:
        """Name the stages for the log line, which has a key of its own for the total."""
        return {f"{name}_ms": time for name, time in self._measured() if name != "total"}

    def header(self) -> bytes:
        """Write the value of `Server-Timing`."""
        return ", ".join(f"{name};dur={time}" for name, time in self._measured()).encode()

    def _measured(self) -> Iterator[tuple[str, float]]:
        for name in self.__struct_fields__:
            time = getattr(self, name)
            if time is not None:
                yield name, time


def milliseconds(seconds: float) -> float:
    """Convert, to a hundredth of a millisecond."""
    return round(seconds * 1e3, 2)
