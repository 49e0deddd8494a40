"""A decoded picture, as it goes from a decoder process to the prompt and the engine.

Apart from the decoding, so that a web worker never loads Pillow.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture as the model sees it: upright, sRGB on white, resized.

    pixels: uint8 RGB, C order [height, width, 3].
    content_hash: 32 bytes, BLAKE2b over shape and pixels; the file's metadata has no part in it.
    source_height, source_width: of the upright picture before resizing; boxes refer to it. Of a
        document's page, at the resolution it was drawn for.
    source_format: as `container.sniff` names it.
    source_mode: what the file's samples are, in Pillow's words, such as `RGBA` or `I;16`.
    notes: what was done to its colours and its position, in English, in that order.
    """

    height: int
    width: int
    pixels: bytes
    content_hash: bytes
    source_height: int
    source_width: int
    source_format: str
    source_mode: str = "RGB"
    notes: tuple[str, ...] = ()
