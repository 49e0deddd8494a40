"""What a decoder process's finding means for the client: an error, its status and its words."""

from collections.abc import Sequence
from importlib.util import find_spec

from service.errors import ClientError, ImageRefused, TooLarge
from service.media.budget import MediaLimits
from service.media.decoder_messages import DecoderRequest, Refused, Render, Sample
from service.media.pages import page_missing, too_many_pages
from service.media.refusal import Refusal
from service.media.resize import MAX_ASPECT_RATIO

_MESSAGES = {
    Refusal.EMPTY: "The image has no bytes.",
    Refusal.ASPECT_RATIO: f"An image's sides may differ by a factor of {MAX_ASPECT_RATIO}.",
    Refusal.TRUNCATED: "The image ends before its end.",
    Refusal.INVALID: "The image is broken and cannot be decoded.",
    Refusal.PDF_ENCRYPTED: "The document wants a password: send it without.",
    Refusal.PDF_INVALID: "The document is broken, or takes too long to draw.",
    Refusal.VIDEO_INVALID: "The video is broken and cannot be decoded.",
    Refusal.VIDEO_FORMAT_UNSUPPORTED: (
        "Videos are taken as MP4, MOV, WebM or Matroska with H.264, H.265, VP8, VP9 or AV1."
    ),
    Refusal.VIDEO_UNSUPPORTED: (
        "This server reads no videos: it was installed without its extra `video` (PyAV)."
    ),
}


def to_error(finding: Refused, limits: MediaLimits, param: str) -> ClientError:
    """Word a finding; nothing of the file or of a library is in it."""
    refusal = finding.refusal
    match refusal:
        case Refusal.PDF_PAGES_INVALID:
            return page_missing(finding.num_pages, param)
        case Refusal.PDF_TOO_MANY_PAGES:
            return too_many_pages(finding.num_pages, limits.max_document_pages, param)
        case Refusal.MEMORY_EXCEEDED:
            message = f"A file may take {limits.max_decode_memory_bytes} bytes of memory to decode."
        case Refusal.PDF_PAGE_TOO_LARGE:
            message = "A page of the document is larger than the format allows."
        case Refusal.TOO_MANY_PIXELS:
            message = f"An image may have {limits.max_image_pixels} pixels."
        case Refusal.VIDEO_TOO_MANY_PIXELS:
            message = f"A video's frames may have {limits.max_image_pixels} pixels."
        case Refusal.VIDEO_TOO_LONG:
            message = (
                f"A video may last {limits.max_video_seconds} s, have {limits.max_video_frames} "
                f"frames and take {limits.max_video_cpu_seconds} s to decode."
            )
        case Refusal.FORMAT_UNSUPPORTED:
            names = ", ".join(name.upper() for name in _readable(limits.formats))
            message = f"The image's format is not supported; supported are {names}."
            return ImageRefused(refusal, message, param=param)
        case _:
            return ImageRefused(refusal, _MESSAGES[refusal], param=param)
    return TooLarge(refusal, message, param=param)


def blame(request: DecoderRequest, *, out_of_time: bool) -> Refused:
    """Make the finding about a file that its decoder process died of."""
    match request:
        case Render():
            return Refused(refusal=Refusal.PDF_INVALID)
        case Sample():
            too_long = Refusal.VIDEO_TOO_LONG if out_of_time else Refusal.VIDEO_INVALID
            return Refused(refusal=too_long)
        case _:
            return Refused(refusal=Refusal.INVALID)


def _readable(formats: Sequence[str]) -> list[str]:
    """Leave out what the settings allow and the installation cannot."""
    return [name for name in formats if name != "heic" or find_spec("pillow_heif") is not None]
