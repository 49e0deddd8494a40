"""Messages as bytes: one msgpack-encoded tagged Struct is one frame.

Frames are sent with `Connection.send_bytes` and read with `Connection.recv_bytes(maximum)`; nothing
is ever unpickled.
"""

from typing import TypeVar

import msgspec

from inference.control import ChildMessage, Stop
from inference.protocol import EngineMessage, WorkerMessage

MAX_FRAME_BYTES = 512 * 1024 * 1024
MAX_CONTROL_FRAME_BYTES = 64 * 1024

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()
_worker_decoder = msgspec.msgpack.Decoder(WorkerMessage)
_engine_decoder = msgspec.msgpack.Decoder(EngineMessage)
_child_decoder = msgspec.msgpack.Decoder(ChildMessage)
_stop_decoder = msgspec.msgpack.Decoder(Stop)


class FrameError(Exception):
    """A frame that is no message of this protocol; its peer loses the connection."""


def encode(message: WorkerMessage | EngineMessage | ChildMessage | Stop) -> bytes:
    """Make one frame."""
    return _encoder.encode(message)


def decode_worker_message(frame: bytes) -> WorkerMessage:
    """Read a frame that a web worker sent.

    Raises:
        FrameError: not such a message.
    """
    return _decode(_worker_decoder, frame)


def decode_engine_message(frame: bytes) -> EngineMessage:
    """Read a frame that the engine sent.

    Raises:
        FrameError: not such a message.
    """
    return _decode(_engine_decoder, frame)


def decode_child_message(frame: bytes) -> ChildMessage:
    """Read a frame that a child sent to the supervisor.

    Raises:
        FrameError: not such a message.
    """
    return _decode(_child_decoder, frame)


def decode_stop(frame: bytes) -> Stop:
    """Read a frame that the supervisor sent to a child.

    Raises:
        FrameError: not such a message.
    """
    return _decode(_stop_decoder, frame)


def _decode(decoder: msgspec.msgpack.Decoder[Message], frame: bytes) -> Message:
    try:
        return decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(type(error).__name__) from error
