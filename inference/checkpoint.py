"""Where a model lies: from the name in the settings to a local folder that is complete.

Downloads and checks files, and says what the web side must know of them; never opens weights.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from inference.architecture import Architecture, count_parameters
from inference.checkpoint_json import CheckpointError
from inference.config import DEMO_MODEL, EngineConfig
from inference.control import ON_THE_HUB
from inference.protocol import ModelFacts

if TYPE_CHECKING:
    from huggingface_hub.utils import tqdm

DEMO_FOLDER = Path(__file__).parent / "demo" / "checkpoint"
MAX_PIXELS_BY_DEFAULT = 4 * 1024 * 1024

_CONFIGURATION_FILES = ["*.json", "*.jinja", "*.txt"]
_WEIGHT_FILES = ["*.safetensors"]
_WEIGHT_INDEX = "model.safetensors.index.json"


class _WeightIndex(msgspec.Struct, frozen=True):
    """model.safetensors.index.json: which file holds which tensor."""

    weight_map: dict[str, str]


def resolve_checkpoint(
    config: EngineConfig, progress: Callable[[str], None], *, with_weights: bool = True
) -> Path:
    """Find the model's folder: the embedded demo, a local folder, or a download from the hub.

    Without weights, only a hub model's small files are fetched: enough to judge it by.

    Raises:
        CheckpointError: there is no such model, or its folder is incomplete.
    """
    local = Path(config.model).expanduser()
    if config.model == DEMO_MODEL:
        folder, missing = DEMO_FOLDER, missing_files(DEMO_FOLDER)
    elif local.is_dir():
        folder, missing = local.resolve(), missing_files(local)
    elif _looks_like_path(config.model):
        raise CheckpointError(f"there is no model folder {local}")
    else:
        folder = _download(config, progress, with_weights=with_weights)
        missing = missing_files(folder, with_weights=with_weights)
    if missing:
        raise CheckpointError(
            f"{folder} is not a complete checkpoint: it lacks {', '.join(missing)}"
        )
    return folder


def missing_files(folder: Path, *, with_weights: bool = True) -> list[str]:
    """Name what a folder lacks to be served; empty when it is complete."""
    needed = ["config.json", "tokenizer.json"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if not _has_chat_template(folder):
        missing.append("a chat template (chat_template.jinja)")
    if with_weights:
        missing += _missing_weights(folder)
    return missing


def model_facts(architecture: Architecture, config: EngineConfig, path: Path) -> ModelFacts:
    """Say what the web side must know, with the server's caps applied.

    The device is the configured name and max_model_len is what the checkpoint and the settings
    allow; whoever picks the device and sizes the KV pool replaces them by what came out.

    Raises:
        CheckpointError: the settings' picture bounds exclude every picture.
    """
    text, vision = architecture.text, architecture.vision
    min_pixels, max_pixels = picture_bounds(architecture, config)
    return ModelFacts(
        name=served_name(config),
        path=str(path),
        model_type=architecture.model_type,
        dtype=chosen_dtype(architecture, config),
        device=config.device,
        num_parameters=count_parameters(architecture),
        vocab_size=text.vocab_size,
        max_model_len=wanted_model_len(architecture, config),
        image_token_id=architecture.image_token_id,
        video_token_id=architecture.video_token_id,
        vision_start_token_id=architecture.vision_start_token_id,
        vision_end_token_id=architecture.vision_end_token_id,
        eos_token_ids=list(architecture.eos_token_ids),
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        temperature=architecture.temperature,
        top_p=architecture.top_p,
        top_k=architecture.top_k,
        repetition_penalty=architecture.repetition_penalty,
    )


def served_name(config: EngineConfig) -> str:
    """What clients call the model: the setting, or the last part of the model's name."""
    path = Path(config.model)
    return config.served_model_name or path.name or path.resolve().name


def chosen_dtype(architecture: Architecture, config: EngineConfig) -> str:
    """The type the weights are computed in: the setting, or the checkpoint's own."""
    return architecture.dtype if config.dtype == "auto" else config.dtype


def wanted_model_len(architecture: Architecture, config: EngineConfig) -> int:
    """The most tokens of one request: the setting, within what the checkpoint can do."""
    limit = architecture.text.max_position_embeddings
    return min(config.max_model_len or limit, limit)


def picture_bounds(architecture: Architecture, config: EngineConfig) -> tuple[int, int]:
    """The least and the most pixels of a resized picture, the server's caps applied.

    Raises:
        CheckpointError: the settings' bounds exclude every picture.
    """
    vision = architecture.vision
    max_pixels = config.max_pixels or min(architecture.max_pixels, MAX_PIXELS_BY_DEFAULT)
    min_pixels = config.min_pixels or min(architecture.min_pixels, max_pixels)
    smallest = (vision.patch_size * vision.spatial_merge_size) ** 2
    if not smallest <= max_pixels >= min_pixels:
        raise CheckpointError(
            f"max_pixels {max_pixels} leaves no picture: it must reach min_pixels {min_pixels} "
            f"and one token's area, {smallest}"
        )
    return min_pixels, max_pixels


def _looks_like_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1 or Path(model).exists()


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        settings = msgspec.json.decode((folder / "tokenizer_config.json").read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return False
    return isinstance(settings, dict) and "chat_template" in settings


def _missing_weights(folder: Path) -> list[str]:
    if (folder / "model.safetensors").is_file():
        return []
    index = folder / _WEIGHT_INDEX
    if not index.is_file():
        return ["weights (model.safetensors)"]
    try:
        files = msgspec.json.decode(index.read_bytes(), type=_WeightIndex).weight_map.values()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"cannot read {index}: {error}") from error
    return [name for name in sorted(set(files)) if not (folder / name).is_file()]


def _download(config: EngineConfig, progress: Callable[[str], None], *, with_weights: bool) -> Path:
    """Bring the hub's files into the local cache; on a terminal its client shows bars."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    if not config.offline:
        progress(f"looking up {config.model}{ON_THE_HUB}")
    try:
        folder = snapshot_download(
            config.model,
            revision=config.revision,
            local_files_only=config.offline,
            allow_patterns=_CONFIGURATION_FILES + (_WEIGHT_FILES if with_weights else []),
            tqdm_class=None if sys.stderr.isatty() else _no_bar(),
        )
    except HFValidationError as error:
        raise CheckpointError(
            f"{config.model!r} is neither a local folder nor a name on the hub; "
            "a hub name looks like Qwen/Qwen3-VL-2B-Instruct"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(_not_in_cache(config, error)) from error
    except HfHubHTTPError as error:
        raise CheckpointError(_refused_by_hub(config, error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{config.model} could not be stored in the local cache: {error.strerror or error}"
        ) from error
    return Path(folder)


def _no_bar() -> "type[tqdm]":
    """A progress bar that stays out of log files; the client's own check covers not all bars."""
    from huggingface_hub.utils import tqdm

    class NoBar(tqdm):
        def __init__(self, *args: object, **settings: object) -> None:
            super().__init__(*args, **(settings | {"disable": True}))

    return NoBar


def _not_in_cache(config: EngineConfig, error: Exception) -> str:
    from huggingface_hub.errors import IncompleteSnapshotError, OfflineModeIsEnabled

    partly = "only partly" if isinstance(error, IncompleteSnapshotError) else "not"
    missing = f"{config.model} is {partly} in the local cache"
    if config.offline or isinstance(error.__cause__, OfflineModeIsEnabled):
        return (
            f"{missing} and the hub may not be asked: start once without offline, or give a folder"
        )
    return (
        f"{missing} and the hub cannot be reached: check the network (and HTTPS_PROXY), "
        "or give a local folder"
    )


def _refused_by_hub(config: EngineConfig, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match error:
        case GatedRepoError():
            return (
                f"{config.model} is gated: accept its terms on its hub page, "
                "then set HF_TOKEN to a token of that account"
            )
        case RepositoryNotFoundError():
            return (
                f"there is no model {config.model} on the hub, nor a folder of that name; "
                "check the spelling, or set HF_TOKEN if it is private"
            )
        case RevisionNotFoundError():
            return f"{config.model} has no revision {config.revision!r}"
        case _:
            return (
                f"the hub did not deliver {config.model} ({type(error).__name__}); try again later"
            )
