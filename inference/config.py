"""The engine's settings, resolved once by the supervisor and handed to the inference process."""

from typing import Annotated, Literal, TypeAlias

import msgspec

DEMO_MODEL = "demo"

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Size: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the inference process is told at its start. None means: the engine chooses.

    model: `demo`, a local folder, or a hub id. revision: branch, tag or commit on the hub.
    offline: never ask the hub; use the local cache only.
    served_model_name: what clients call the model; None takes the last part of `model`.
    dtype: `auto` (the checkpoint's own), `bfloat16`, `float16` or `float32`.
    device: `auto`, `cpu`, `cuda`, `cuda:1`. device_map: accelerate's `auto` or `balanced` spreads
        one big model over several GPUs; None keeps it on `device`.
    max_model_len: prompt and output tokens together; None takes the checkpoint's, as far as the KV
        pool holds one such request.
    min_pixels, max_pixels: picture area bounds after resizing; None takes the checkpoint's, with
        the upper one cut to 4 megapixels so that one picture cannot fill the context.
    max_num_seqs: sequences that decode together.
    max_num_batched_tokens: prefill tokens a step; None takes 896 on a CPU, where larger steps are
        no quicker a token and others wait for them, and 2048 on a GPU.
    max_num_encoded_patches: vision patches a step; one larger picture still runs, alone. None takes
        2048 on a CPU, 16384 on a GPU.
    block_size: tokens a KV block.
    kv_cache_bytes: size of the KV pool; None takes what gpu_memory_utilization leaves, on a CPU at
        most 2 GiB.
    gpu_memory_utilization: share of the device's memory that weights, pool and work may take.
    embedding_cache_bytes: cap of the cache of encoded pictures.
    max_queued_requests: requests waiting beyond the running ones before `overloaded`.
    max_queued_tokens: the same in prompt tokens; None takes four times what the KV pool holds.
    max_queued_patches: the same in vision patches; the default is 0.8 GB of pixels in memory.
    max_queued_seconds: the same in time, as predicted from the steps measured lately.
    num_threads: CPU threads of the engine's arithmetic; None chooses from the cores.
    """

    model: str = DEMO_MODEL
    revision: str | None = None
    offline: bool = False
    served_model_name: str | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    device: Annotated[str, msgspec.Meta(pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")] = "auto"
    device_map: str | None = None
    max_model_len: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    max_num_seqs: Count = 64
    max_num_batched_tokens: Count | None = None
    max_num_encoded_patches: Count | None = None
    block_size: Count = 16
    kv_cache_bytes: Count | None = None
    gpu_memory_utilization: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.9
    embedding_cache_bytes: Size = 256 * 1024 * 1024
    max_queued_requests: Size = 256
    max_queued_tokens: Count | None = None
    max_queued_patches: Count = 1024 * 1024
    max_queued_seconds: Annotated[float, msgspec.Meta(gt=0)] = 60.0
    num_threads: Count | None = None

    @property
    def step_tokens(self) -> int:
        """Prefill tokens of a step at most; `device` must be one that exists, not `auto`."""
        return self.max_num_batched_tokens or (896 if self.device == "cpu" else 2048)

    @property
    def step_patches(self) -> int:
        """Vision patches of a step at most; `device` must be one that exists, not `auto`."""
        return self.max_num_encoded_patches or (2048 if self.device == "cpu" else 16384)
