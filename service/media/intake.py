"""From what a request points at to what the model sees: counted, gathered, recognised, decoded.

The one road for every dialect. Knows the order of the steps and their limits; not how bytes are
fetched, kept or decoded.
"""

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol, assert_never

from service.aside import aside
from service.conversation import Bytes, Inline, MediaKind, MediaPart, Remote, Stored
from service.errors import FieldInvalid, RequestInvalid
from service.media.budget import MediaBudget, MediaLimits, check_file_bytes
from service.media.container import kind_of
from service.media.encoded import EncodedFile
from service.media.fetch import RemoteFile
from service.media.inline import decode_inline
from service.media.medium import Medium
from service.media.model_bounds import ModelBounds
from service.media.pages import too_many_pages
from service.media.pool import ImagePool
from service.media.resize import ResizeBounds
from service.media.sampling import VideoBounds
from service.request_log import RequestRecord
from service.stages import milliseconds

# A megabyte of base64 takes 1.6 ms to decode; more does not belong on the event loop.
_MAX_CHARACTERS_ON_LOOP = 1_000_000
# What `low` detail means: 512 x 512 pixels, 256 tokens of the published checkpoints.
LOW_DETAIL_PIXELS = 512 * 512


class Fetcher(Protocol):
    """Gets files from elsewhere."""

    async def fetch_all(self, files: Sequence[RemoteFile]) -> list[bytes]:
        """Fetch a request's files side by side, in their order."""
        ...


class FileReader(Protocol):
    """Gives back what was uploaded before."""

    async def read(self, file_id: str, owner: str, param: str) -> bytes:
        """Read a file of this owner's."""
        ...


class _Wanted(NamedTuple):
    """One part, its file, what that is, and the sizes it may have for the model."""

    part: MediaPart
    file: EncodedFile
    kind: MediaKind
    bounds: ResizeBounds


class MediaIntake:
    """Takes in a request's media; one per worker."""

    def __init__(
        self, limits: MediaLimits, pool: ImagePool, fetcher: Fetcher, files: FileReader
    ) -> None:
        self._limits = limits
        self._pool = pool
        self._fetcher = fetcher
        self._files = files

    async def take_in(
        self, parts: Sequence[MediaPart], bounds: ModelBounds, record: RequestRecord
    ) -> list[Medium]:
        """Give what every part shows, in order.

        bounds: the loaded checkpoint's. record: tells whose files may be read, and gets the times.

        Raises:
            ServiceError: the first part that cannot be used, by name; nothing is fetched or decoded
                before all that can be told from the request itself is.
        """
        budget = MediaBudget(self._limits)
        for part in parts:
            budget.take_image(part.param)
        own_bounds = [_own_bounds(part, bounds.images) for part in parts]
        files = await self._gather(parts, budget, record)
        record.enter("decoding")
        gathered_at = time.perf_counter()
        wanted = [
            _Wanted(part, file, self._recognise(part, file), own)
            for part, file, own in zip(parts, files, own_bounds, strict=True)
        ]
        media = await self._decode(wanted, bounds.video)
        record.stages.image_decode = milliseconds(time.perf_counter() - gathered_at)
        return media

    async def _gather(
        self, parts: Sequence[MediaPart], budget: MediaBudget, record: RequestRecord
    ) -> list[EncodedFile]:
        """Get every part's bytes; what is in the request first, then what must be fetched."""
        contents: dict[int, bytes] = {}
        inline = {
            place: part for place, part in enumerate(parts) if isinstance(part.source, Inline)
        }
        contents |= await self._decode_inline(inline, budget)
        remote: list[int] = []
        for place, part in enumerate(parts):
            match part.source:
                case Bytes(content):
                    contents[place] = content
                case Stored(file_id):
                    contents[place] = await self._files.read(
                        file_id, record.caller.tenant, part.param
                    )
                case Remote():
                    remote.append(place)
                    continue
                case Inline():
                    continue
                case _:
                    assert_never(part.source)
            budget.take_bytes(len(contents[place]), part.param, part.kinds)
        fetched = await self._fetch([parts[place] for place in remote], record)
        for place, content in zip(remote, fetched, strict=True):
            budget.take_bytes(len(content), parts[place].param, parts[place].kinds)
            contents[place] = content
        return [EncodedFile(contents[place], part.param) for place, part in enumerate(parts)]

    async def _fetch(self, parts: Sequence[MediaPart], record: RequestRecord) -> list[bytes]:
        if not parts:
            return []
        record.enter("fetching")
        started_at = time.perf_counter()
        try:
            return await self._fetcher.fetch_all(
                [RemoteFile(_url(part), part.param, part.kinds) for part in parts]
            )
        finally:
            record.stages.image_fetch = milliseconds(time.perf_counter() - started_at)

    async def _decode_inline(
        self, parts: dict[int, MediaPart], budget: MediaBudget
    ) -> dict[int, bytes]:
        def decode() -> dict[int, bytes]:
            contents: dict[int, bytes] = {}
            for place, part in parts.items():
                contents[place] = decode_inline(_text(part), part.param, self._limits, part.kinds)
                budget.take_bytes(len(contents[place]), part.param, part.kinds)
            return contents

        if sum(len(_text(part)) for part in parts.values()) <= _MAX_CHARACTERS_ON_LOOP:
            return decode()
        return await aside(decode)

    async def _decode(self, wanted: Sequence[_Wanted], bounds: VideoBounds) -> list[Medium]:
        """Decode every file as what its bytes say it is: pictures side by side, the others in turn.

        A document or a video takes as long as many pictures; a request gets one process for them.
        """
        images = [place for place, each in enumerate(wanted) if each.kind == "image"]
        decoded = await self._pool.decode_all(
            [wanted[place].file for place in images], [wanted[place].bounds for place in images]
        )
        media: dict[int, Medium] = dict(zip(images, decoded, strict=True))
        num_pages = 0
        for place, each in enumerate(wanted):
            if each.kind == "document":
                document = await self._pool.render_document(each.file, each.part.pages, each.bounds)
                num_pages += len(document.pages)
                if num_pages > self._limits.max_document_pages:
                    raise too_many_pages(
                        num_pages, self._limits.max_document_pages, each.file.param
                    )
                media[place] = document
            elif each.kind == "video":
                media[place] = await self._pool.sample_video(each.file, bounds)
        return [media[place] for place in range(len(wanted))]

    def _recognise(self, part: MediaPart, file: EncodedFile) -> MediaKind:
        """Tell by its bytes what a file is, and whether the field that brought it takes that.

        Raises:
            ClientError: it does not, it is too large, or the part asks what such a file has not.
        """
        kind = kind_of(file.encoded)
        if kind not in part.kinds:
            if part.kinds == ("image",):
                return "image"  # the decoder names what is wrong
            code, message = "file_type_unsupported", "A file of this type is not taken here."
            if not file.encoded:
                code, message = "file_empty", "The file has no bytes."
            raise RequestInvalid(code, message, param=part.param)
        check_file_bytes(len(file.encoded), part.param, (kind,), self._limits)
        if kind == "video" and (part.min_pixels, part.max_pixels) != (None, None):
            raise RequestInvalid(
                "field_conflict",
                "min_pixels and max_pixels are for images and documents, not for videos.",
                param="min_pixels" if part.max_pixels is None else "max_pixels",
            )
        if kind != "document" and part.pages is not None:
            raise RequestInvalid(
                "field_conflict", "Only a document has pages to choose from.", param="pages"
            )
        return kind


def _own_bounds(part: MediaPart, bounds: ResizeBounds) -> ResizeBounds:
    """Narrow the checkpoint's bounds to a part's own.

    Raises:
        FieldInvalid: they lie outside, or contradict each other.
    """
    for name, value in (("min_pixels", part.min_pixels), ("max_pixels", part.max_pixels)):
        if value is not None and not bounds.min_pixels <= value <= bounds.max_pixels:
            raise FieldInvalid(
                "value_out_of_range",
                f"This server takes {name} from {bounds.min_pixels} to {bounds.max_pixels}.",
                param=name,
            )
    lower, upper = part.min_pixels, part.max_pixels
    if lower is not None and upper is not None and lower > upper:
        raise FieldInvalid(
            "value_out_of_range", "min_pixels must not be above max_pixels.", param="min_pixels"
        )
    if upper is None:
        upper = bounds.max_pixels if part.detail != "low" else LOW_DETAIL_PIXELS
    lower = bounds.min_pixels if lower is None else lower
    return ResizeBounds(
        factor=bounds.factor,
        min_pixels=lower,
        max_pixels=min(max(lower, upper), bounds.max_pixels),
    )


def _text(part: MediaPart) -> str:
    return part.source.text if isinstance(part.source, Inline) else ""


def _url(part: MediaPart) -> str:
    return part.source.url if isinstance(part.source, Remote) else ""
