"""What a request shows to the model, once decoded: pictures, and documents as their pages."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

from service.media.decoded_image import DecodedImage


class Page(NamedTuple):
    """One page of a document as a picture; number counts from 1 over the whole document."""

    number: int
    image: DecodedImage


class Document(NamedTuple):
    """Pages of one document, in the order they were asked for, of num_pages that it has."""

    num_pages: int
    pages: tuple[Page, ...]


Medium: TypeAlias = DecodedImage | Document


def images_of(media: Sequence[Medium]) -> Iterator[DecodedImage]:
    """Give every picture and every page, in prompt order."""
    for medium in media:
        match medium:
            case DecodedImage():
                yield medium
            case Document(pages=pages):
                yield from (page.image for page in pages)
