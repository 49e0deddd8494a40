"""What a request shows to the model, once decoded: pictures, documents and videos."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from service.media.decoded_image import DecodedImage
from service.media.sampled_video import SampledVideo


class Page(NamedTuple):
    """One page of a document as a picture; number counts from 1 over the whole document."""

    number: int
    image: DecodedImage


class Document(NamedTuple):
    """Pages of one document, in the order they were asked for, of num_pages that it has."""

    num_pages: int
    pages: tuple[Page, ...]


Medium: TypeAlias = DecodedImage | Document | SampledVideo


def sights_of(media: Sequence[Medium]) -> Iterator[DecodedImage | SampledVideo]:
    """Give what the engine gets of them, in prompt order: of a document its pages."""
    for medium in media:
        if isinstance(medium, Document):
            yield from (page.image for page in medium.pages)
        else:
            yield medium
