"""The one road from any colour mode to what the model sees: upright sRGB on white.

Grey and colour deeper than 8 bits is scaled by 1/257, never clipped. An embedded ICC profile leads
to sRGB and is ignored when broken. Whatever alpha hides stays hidden: it is laid on white.
"""

import io
from typing import NamedTuple, cast

from PIL import ExifTags, Image, ImageChops, ImageCms

from service.media.refusal import MediumRefused, Refusal

_WHITE = (255, 255, 255)
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PHOTOMETRIC, _BITS_PER_SAMPLE, _WHITE_IS_ZERO = 262, 258, 0

_NO_PROFILE_NOTES = {"CMYK": "ink to colour, without a profile", "LAB": "CIE Lab to sRGB"}


class UprightImage(NamedTuple):
    """A picture as a person would see it, mode RGB, and what was done to it, in English."""

    image: Image.Image
    notes: tuple[str, ...]


def orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 where there is none or it cannot be read.

    Ask after `load`: Pillow turns a TIFF by itself while loading, and forgets the tag.
    """
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - broken metadata raises nearly anything, and is only metadata
        return 1
    return value if value in _TRANSPOSITIONS else 1


def to_upright_rgb(image: Image.Image, *, deep_colour: bool) -> UprightImage:
    """Turn a loaded picture upright and into sRGB on white, mode RGB.

    deep_colour: the file had 16 bits a channel, of which Pillow kept the high byte (at most one
    level from 1/257); its colour key still has 16.

    Raises:
        MediumRefused: FORMAT_UNSUPPORTED for 32-bit and floating-point samples, which have no
            defined white.
    """
    notes: list[str] = []
    if deep_colour or image.mode.startswith("I;16"):
        notes.append("16 bits scaled to 8")
    how_stored = orientation(image)
    colour, alpha = _split_alpha(image, deep_colour=deep_colour)
    flat, note = _to_srgb(colour, image.info.get("icc_profile"))
    notes += note
    if alpha is not None:
        canvas = Image.new("RGB", flat.size, _WHITE)
        canvas.paste(flat, mask=alpha)
        flat = canvas
        notes.append("alpha laid on white")
    turn = _TRANSPOSITIONS.get(how_stored)
    if turn is not None:
        flat = flat.transpose(turn)
        notes.append(f"turned upright from EXIF orientation {how_stored}")
    return UprightImage(flat, tuple(notes))


def _split_alpha(
    image: Image.Image, *, deep_colour: bool
) -> tuple[Image.Image, Image.Image | None]:
    """Part a picture into colour (L, RGB, CMYK or LAB) and alpha (L), if it has any."""
    if image.mode.startswith("I;16"):
        return _from_deep_grey(image)
    if image.mode in ("I", "F"):
        raise MediumRefused(Refusal.FORMAT_UNSUPPORTED)
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        key = image.info.get("transparency")
        if deep_colour and isinstance(key, tuple):
            wide_key = cast("tuple[int, ...]", key)
            image.info["transparency"] = tuple(value >> 8 for value in wide_key)
        both = image.convert("LA" if grey else "RGBA")
        *channels, alpha = both.split()
        return (channels[0] if grey else Image.merge("RGB", channels)), alpha
    if grey:
        return image.convert("L"), None
    if image.mode in ("RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("RGB"), None


def _from_deep_grey(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Scale grey of up to 16 bits to 8 by table, and its colour key to alpha."""
    tags: dict[int, object] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))
    white = 4095 if bits == (12,) else 65535
    levels = [min((value * 255 + white // 2) // white, 255) for value in range(65536)]
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = [255 - level for level in levels]
    wide = image.convert("I")
    key = image.info.get("transparency")
    if not isinstance(key, int):
        return wide.point(levels, "L"), None
    opaque = [255] * 65536
    opaque[key & 0xFFFF] = 0
    return wide.point(levels, "L"), wide.point(opaque, "L")


def _to_srgb(colour: Image.Image, profile: object) -> tuple[Image.Image, list[str]]:
    """Convert, and tell how, if there was anything to do."""
    if isinstance(profile, bytes) and profile:
        try:
            converted = _apply_profile(colour, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass  # broken, or made for another mode: the picture is still good without it
        else:
            return converted, ["ICC profile to sRGB"] if converted is not colour else []
    # `convert` would copy what needs no change.
    if colour.mode == "RGB":
        return colour, []
    note = _NO_PROFILE_NOTES.get(colour.mode)
    return colour.convert("RGB"), [note] if note else []


def _apply_profile(colour: Image.Image, profile: bytes) -> Image.Image:
    """Convert from an embedded profile to sRGB, with the perceptual intent.

    Most profiles are sRGB by another name. Where no probe colour moves by more than one level, the
    pixels stay as they are: exact, and quicker.
    """
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        # Pillow's stub leaves the profile's type open.
        ImageCms.createProfile("sRGB"),  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        colour.mode,
        "RGB",
        ImageCms.Intent.PERCEPTUAL,
    )
    if colour.mode == "RGB":
        probe = _probe_colours()
        moved = ImageChops.difference(probe, transform.apply(probe))
        if max(moved.tobytes()) <= 1:
            return colour
    return transform.apply(colour)


def _probe_colours() -> Image.Image:
    steps = range(0, 256, 51)
    pixels = bytes(level for r in steps for g in steps for b in steps for level in (r, g, b))
    return Image.frombytes("RGB", (len(pixels) // 3, 1), pixels)
