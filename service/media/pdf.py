"""A document's pages to the pixels the model sees; runs in a decoder process.

PDFium draws, in a build that has no JavaScript engine; nothing a document wants to fetch, run or
attach is looked at. The library is loaded with the first document, not with the process.
"""

import importlib
import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from service.media.decode import content_hash, target_size
from service.media.decoded_image import DecodedImage
from service.media.refusal import MediumRefused, Refusal
from service.media.resize import ResizeBounds

# pypdfium2 has no types.
Library: TypeAlias = Any
PdfDocument: TypeAlias = Any
PdfPage: TypeAlias = Any

# What the format itself allows a page's side to be, in points; a tenth of a mile is no page.
MAX_SIDE_POINTS = 14_400
_POINTS_PER_INCH = 72
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, slots=True)
class PageBounds:
    """How large a page is drawn before the model's own bounds.

    dots_per_inch: the resolution. max_pixels: width times height; a larger page is drawn smaller.
    """

    dots_per_inch: int
    max_pixels: int


@contextmanager
def opened(encoded: bytes) -> Generator[PdfDocument]:
    """Open a document; whatever fails in the block is a finding.

    Raises:
        MediumRefused: PDF_ENCRYPTED if it wants a password, PDF_INVALID.
    """
    library, raw = _load()
    try:
        with library.PdfDocument(encoded) as document:
            document.init_forms()
            yield document
    except (MediumRefused, MemoryError):
        raise
    except Exception as error:  # hostile bytes make the library raise nearly anything
        code = getattr(error, "err_code", None)
        locked = code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
        raise MediumRefused(Refusal.PDF_ENCRYPTED if locked else Refusal.PDF_INVALID) from error


def choose_pages(
    document: PdfDocument, wanted: tuple[int, ...] | None, max_pages: int
) -> tuple[int, ...]:
    """Tell which pages to draw: those wanted, or all; numbers count from 1.

    Raises:
        MediumRefused: PDF_PAGES_INVALID for a page that is not there, PDF_TOO_MANY_PAGES,
            PDF_INVALID for a document without pages.
    """
    num_pages = len(document)
    if num_pages < 1:
        raise MediumRefused(Refusal.PDF_INVALID)
    if wanted is not None and max(wanted) > num_pages:
        raise MediumRefused(Refusal.PDF_PAGES_INVALID, num_pages=num_pages)
    if wanted is None and num_pages > max_pages:
        raise MediumRefused(Refusal.PDF_TOO_MANY_PAGES, num_pages=num_pages)
    return tuple(range(1, num_pages + 1)) if wanted is None else wanted


def render(
    document: PdfDocument, number: int, page_bounds: PageBounds, bounds: ResizeBounds
) -> DecodedImage:
    """Draw one page upright on white, with its annotations and what its forms hold.

    It is drawn at the size the model takes it in, not drawn larger and resized: letters stay sharp.

    Raises:
        MediumRefused: PDF_PAGE_TOO_LARGE, or ASPECT_RATIO.
    """
    page = document[number - 1]
    try:
        width_points, height_points = page.get_size()
        source_height, source_width = _source_size(height_points, width_points, page_bounds)
        height, width = target_size(source_height, source_width, bounds)
        pixels = _draw(document, page, height, width)
    finally:
        page.close()
    return DecodedImage(
        height=height,
        width=width,
        pixels=pixels,
        content_hash=content_hash(height, width, pixels),
        source_height=source_height,
        source_width=source_width,
        source_format="pdf",
        notes=("drawn at the size the model takes",),
    )


def _load() -> tuple[Library, Library]:
    """Load the library and its C functions; quick from the second time on."""
    return importlib.import_module("pypdfium2"), importlib.import_module("pypdfium2.raw")


def _source_size(height: float, width: float, page_bounds: PageBounds) -> tuple[int, int]:
    """Tell a page's height and width in pixels from its points."""
    if max(width, height) > MAX_SIDE_POINTS:
        raise MediumRefused(Refusal.PDF_PAGE_TOO_LARGE)
    scale = page_bounds.dots_per_inch / _POINTS_PER_INCH
    scale *= min(1, math.sqrt(page_bounds.max_pixels / (width * height * scale**2)))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def _draw(document: PdfDocument, page: PdfPage, height: int, width: int) -> bytes:
    library, raw = _load()
    bitmap = library.PdfBitmap.new_native(width, height, raw.FPDFBitmap_BGR, rev_byteorder=True)
    bitmap.fill_rect(_WHITE, 0, 0, width, height)
    flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER | raw.FPDF_RENDER_LIMITEDIMAGECACHE
    raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, width, height, 0, flags)
    if document.formenv is not None:
        raw.FPDF_FFLDraw(document.formenv, bitmap, page, 0, 0, width, height, 0, flags)
    return bytes(bitmap.buffer)  # packed: three bytes a pixel, no padding
