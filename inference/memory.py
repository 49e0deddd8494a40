"""Whether a model fits, and how large its KV pool gets, worked out before any weight is loaded.

Pure arithmetic over a checkpoint's footprint, the settings and a device's memory.
"""

from collections.abc import Iterator

import msgspec

from inference.architecture import Architecture
from inference.checkpoint import chosen_dtype, wanted_model_len
from inference.config import EngineConfig
from inference.device import DeviceMemory
from inference.footprint import (
    attention_bytes,
    block_bytes,
    logits_bytes,
    prefill_bytes,
    scores_bytes,
    token_bytes,
    vision_bytes,
    weights_bytes,
)

GIBIBYTE = 1024**3
CPU_USABLE_RATIO = 0.9  # of what is free: the web workers and the kernel live there too
CPU_POOL_BYTES = 2 * GIBIBYTE
CPU_POOL_RATIO = 0.5  # of what weights and work leave
CUDA_OVERHEAD_BYTES = GIBIBYTE  # context, cuBLAS workspaces, captured graphs: estimated
MIN_MODEL_LEN = 1024  # a small picture, a question and an answer; nobody asks for less unsaid

# Parameters of the published family; test_architecture.py counts them.
FAMILY_PARAMETERS = {
    "Qwen/Qwen3-VL-2B-Instruct": 2_127_532_032,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31_070_754_032,
    "Qwen/Qwen3-VL-32B-Instruct": 33_357_390_064,
    "Qwen/Qwen3-VL-235B-A22B-Instruct": 235_670_022_896,
}


class ModelTooLarge(Exception):
    """The model does not fit; the message gives the numbers and what would fit."""


class MemoryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a device's memory goes; bytes throughout.

    usable_bytes: what all of it together may take. working_bytes: the most one step holds, whatever
    the pool: prefill_bytes, vision_bytes, attention's scores, logits_bytes and the runtime's own.
    attention_bytes: what attention holds beside the pool, growing with it.
    num_blocks: of the pool, the padding block included. max_model_len: what one request may take,
    lowered to the pool where it was not asked for.
    """

    device: str
    dtype: str
    free_bytes: int
    total_bytes: int
    usable_bytes: int
    weights_bytes: int
    prefill_bytes: int
    vision_bytes: int
    logits_bytes: int
    working_bytes: int
    attention_bytes: int
    embedding_cache_bytes: int
    block_bytes: int
    num_blocks: int
    kv_cache_bytes: int
    max_model_len: int

    @property
    def needed_bytes(self) -> int:
        """All parts together."""
        fixed = self.weights_bytes + self.working_bytes + self.embedding_cache_bytes
        return fixed + self.attention_bytes + self.kv_cache_bytes


def plan_memory(
    architecture: Architecture, config: EngineConfig, memory: DeviceMemory, device: str
) -> MemoryPlan:
    """Share a device's memory between weights, work, caches and the KV pool.

    Raises:
        ModelTooLarge: they do not fit together with one request of max_model_len.
        CheckpointError: the settings' picture bounds exclude every picture.
    """
    plan = _draft(architecture, config, memory, device)
    if not _fits(plan, architecture, config):
        raise ModelTooLarge(_explain(plan, architecture, config, memory))
    return plan


def _draft(
    architecture: Architecture, config: EngineConfig, memory: DeviceMemory, device: str
) -> MemoryPlan:
    """Lay everything out without asking whether it fits."""
    prefill = prefill_bytes(architecture, config)
    vision = vision_bytes(architecture, config)
    logits = logits_bytes(architecture, config)
    overhead = 0 if device == "cpu" else CUDA_OVERHEAD_BYTES
    weights = weights_bytes(architecture, config, device)
    scores = scores_bytes(architecture, config)
    working = prefill + vision + scores + logits + overhead
    usable = _usable(config, memory, device)
    room = usable - weights - working - config.embedding_cache_bytes
    num_blocks = _num_blocks(architecture, config, room, device)
    num_tokens = num_blocks * config.block_size
    max_model_len = wanted_model_len(architecture, config)
    if config.max_model_len is None:
        max_model_len = min(max_model_len, max(num_tokens - config.block_size, 0))
    size = block_bytes(architecture, config)
    return MemoryPlan(
        device=device,
        dtype=chosen_dtype(architecture, config),
        free_bytes=memory.free_bytes,
        total_bytes=memory.total_bytes,
        usable_bytes=usable,
        weights_bytes=weights,
        prefill_bytes=prefill,
        vision_bytes=vision,
        logits_bytes=logits,
        working_bytes=working,
        attention_bytes=attention_bytes(architecture, config, num_tokens=num_tokens),
        embedding_cache_bytes=config.embedding_cache_bytes,
        block_bytes=size,
        num_blocks=num_blocks,
        kv_cache_bytes=num_blocks * size,
        max_model_len=max_model_len,
    )


def _usable(config: EngineConfig, memory: DeviceMemory, device: str) -> int:
    if device == "cpu":
        return int(memory.free_bytes * CPU_USABLE_RATIO)
    return min(memory.free_bytes, int(memory.total_bytes * config.gpu_memory_utilization))


def _blocks_for(num_tokens: int, config: EngineConfig) -> int:
    """Blocks of a pool that holds this many tokens, the padding block included."""
    return -(-num_tokens // config.block_size) + 1


def _num_blocks(
    architecture: Architecture, config: EngineConfig, room_bytes: int, device: str
) -> int:
    """Size the pool: as set; else what is left, but no more than can ever be in use."""
    size = block_bytes(architecture, config)
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes // size
    wanted = wanted_model_len(architecture, config)
    most = _most_tokens(architecture, config, room_bytes) // config.block_size
    if device == "cpu":
        # A request length that was asked for outweighs the default size of the pool.
        least = 0 if config.max_model_len is None else _blocks_for(wanted, config)
        default = min(CPU_POOL_BYTES, int(room_bytes * CPU_POOL_RATIO)) // size
        most = min(most, max(default, least))
    return max(min(most, _blocks_for(config.max_num_seqs * wanted, config)), 0)


def _most_tokens(architecture: Architecture, config: EngineConfig, room_bytes: int) -> int:
    """Tokens whose keys, values and attention fit into the room."""
    token = token_bytes(architecture, config)
    return room_bytes // (token + attention_bytes(architecture, config, num_tokens=1))


def _fits(plan: MemoryPlan, architecture: Architecture, config: EngineConfig) -> bool:
    needed = _blocks_for(_least_model_len(plan, architecture, config), config)
    return plan.needed_bytes <= plan.usable_bytes and plan.num_blocks >= max(needed, 2)


def _least_model_len(plan: MemoryPlan, architecture: Architecture, config: EngineConfig) -> int:
    """The shortest request length that is worth serving under these settings."""
    if config.max_model_len is not None or config.kv_cache_bytes is not None:
        return plan.max_model_len
    return min(architecture.text.max_position_embeddings, MIN_MODEL_LEN)


def _explain(
    plan: MemoryPlan, architecture: Architecture, config: EngineConfig, memory: DeviceMemory
) -> str:
    pool = config.kv_cache_bytes
    if pool is None:
        tokens = _least_model_len(plan, architecture, config)
        pool = _blocks_for(tokens, config) * plan.block_bytes
        cache = f"{_size(pool)} KV cache for one request of {tokens} tokens"
    else:
        held = max(plan.num_blocks - 1, 0) * config.block_size
        cache = f"{_size(pool)} KV cache as set, which holds {held} tokens"
        if config.max_model_len is not None:
            cache += f" of the {plan.max_model_len} asked for"
    fitting = list(_what_would_fit(plan, architecture, config, memory))
    advice = "; ".join(fitting) if fitting else "no setting; a device with more memory is needed"
    return (
        f"{config.model} does not fit: needs {_size(plan.weights_bytes)} weights in "
        f"{plan.dtype} + {_size(plan.working_bytes)} working memory + "
        f"{_size(plan.embedding_cache_bytes)} picture cache + {cache}; usable on "
        f"{plan.device}: {_size(plan.usable_bytes)} (free {_size(plan.free_bytes)} of "
        f"{_size(plan.total_bytes)}). Fits: {advice}"
    )


def _what_would_fit(
    plan: MemoryPlan, architecture: Architecture, config: EngineConfig, memory: DeviceMemory
) -> Iterator[str]:
    """Try each way out on the same arithmetic, and name those that work."""

    def fits(**changes: object) -> MemoryPlan | None:
        changed = msgspec.structs.replace(config, **changes)
        draft = _draft(architecture, changed, memory, plan.device)
        return draft if _fits(draft, architecture, changed) else None

    if config.max_model_len is not None and (shorter := fits(max_model_len=None)):
        yield f"--max-model-len {shorter.max_model_len}"
    if config.kv_cache_bytes is not None and fits(kv_cache_bytes=None):
        yield "leaving --kv-cache-bytes unset"
    if plan.dtype == "float32" and fits(dtype="bfloat16"):
        yield "--dtype bfloat16"
    tokens, patches = config.step_tokens // 4, config.step_patches // 4
    if fits(max_num_batched_tokens=tokens, max_num_encoded_patches=patches):
        yield f"--max-num-batched-tokens {tokens} with --max-num-encoded-patches {patches}"
    rest = plan.usable_bytes - plan.working_bytes - plan.embedding_cache_bytes
    smaller = [
        name
        for name, parameters in FAMILY_PARAMETERS.items()
        if 2 * parameters < min(plan.weights_bytes, rest - GIBIBYTE // 2)
    ]
    if smaller:
        yield f"a smaller model of the family, such as {smaller[-1]}"


def _size(count: int) -> str:
    if count >= GIBIBYTE:
        return f"{count / GIBIBYTE:.1f} GiB"
    return f"{count / 1024**2:.1f} MiB"
