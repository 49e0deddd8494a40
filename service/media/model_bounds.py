"""What the loaded checkpoint asks of sizes, before the server's limits: pictures and videos."""

from pathlib import Path
from typing import NamedTuple

import msgspec

from inference.protocol import ModelFacts
from service.media.resize import ResizeBounds
from service.media.sampling import VideoBounds


class ModelBounds(NamedTuple):
    """Bounds for a checkpoint: of each picture or page, and of each video."""

    images: ResizeBounds
    video: VideoBounds


class _Size(msgspec.Struct, frozen=True):
    """Areas, for all their names. The defaults are those of transformers' class."""

    shortest_edge: int = 128 * 32 * 32
    longest_edge: int = 768 * 32 * 32


class _VideoProcessor(msgspec.Struct, frozen=True):
    """What matters here of `video_preprocessor_config.json`."""

    size: _Size = _Size()
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768


class _Processor(msgspec.Struct):
    """Of `processor_config.json`, in which newer checkpoints keep all of it."""

    video_processor: _VideoProcessor = _VideoProcessor()


def read_model_bounds(model: ModelFacts) -> ModelBounds:
    """Put together what the engine says of pictures and the checkpoint's files of videos.

    Raises:
        ValueError: a file is broken.
    """
    factor = model.patch_size * model.merge_size
    processor = _read_video_processor(Path(model.path))
    return ModelBounds(
        ResizeBounds(factor=factor, min_pixels=model.min_pixels, max_pixels=model.max_pixels),
        VideoBounds(
            factor=factor,
            temporal_factor=model.temporal_patch_size,
            min_pixels=processor.size.shortest_edge,
            max_pixels=processor.size.longest_edge,
            frames_per_second=processor.fps,
            min_frames=processor.min_frames,
            max_frames=processor.max_frames,
        ),
    )


def _read_video_processor(checkpoint: Path) -> _VideoProcessor:
    own = checkpoint / "video_preprocessor_config.json"
    if own.exists():
        return msgspec.json.decode(own.read_bytes(), type=_VideoProcessor)
    shared = checkpoint / "processor_config.json"
    if shared.exists():
        return msgspec.json.decode(shared.read_bytes(), type=_Processor).video_processor
    return _VideoProcessor()
