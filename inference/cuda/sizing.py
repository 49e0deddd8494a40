"""How large the KV pool gets on a GPU: what is left beside the largest step, which is measured.

The plan made before loading says whether a model can fit at all. Its figures for a step's work are
bounds; here the step runs once, with the largest picture and the largest chunk there can be.
"""

import math

import msgspec
import torch

from inference.attention import Rows
from inference.config import EngineConfig
from inference.cuda.attention import MAX_GATHERED_TOKENS
from inference.memory import CUDA_OVERHEAD_BYTES, MIN_MODEL_LEN, MemoryPlan, ModelTooLarge
from inference.model import Model
from inference.protocol import ModelFacts
from inference.runner import make_attention


def measured_plan(
    plan: MemoryPlan, model: Model, config: EngineConfig, facts: ModelFacts, *, longest: int
) -> MemoryPlan:
    """The plan with its pool sized by what a loaded model leaves on its GPU.

    Args:
        plan: the one made before loading; kept where the settings say how large the pool is.
        model: on its GPU, with nothing else of this process there.
        config: the settings.
        facts: of the model; its largest picture is measured.
        longest: tokens one request may take if the pool holds them.

    Raises:
        ModelTooLarge: less is left than one request needs.
    """
    if config.kv_cache_bytes is not None:
        return plan
    geometry = model.text.geometry
    gathered = 2 * geometry.num_kv_heads * geometry.head_dim * model.text.embed.element_size()
    working = largest_step_bytes(model, config, facts)
    working += gathered * max(MAX_GATHERED_TOKENS, longest)
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(model.device)
    allowed = min(int(total * config.gpu_memory_utilization) - (total - free), free)
    return resized(plan, config, allowed_bytes=allowed, working_bytes=working, longest=longest)


def resized(
    plan: MemoryPlan,
    config: EngineConfig,
    *,
    allowed_bytes: int,
    working_bytes: int,
    longest: int,
) -> MemoryPlan:
    """The plan with a pool for what the process may still take beside the weights.

    Raises:
        ModelTooLarge: that is less than one request needs.
    """
    room = allowed_bytes - working_bytes - config.embedding_cache_bytes - CUDA_OVERHEAD_BYTES
    most = math.ceil(config.max_num_seqs * longest / config.block_size) + 1
    num_blocks = max(min(room // plan.block_bytes, most), 0)
    num_tokens = max(num_blocks - 1, 0) * config.block_size
    needed = longest if config.max_model_len is not None else min(longest, MIN_MODEL_LEN)
    if num_tokens < needed:
        raise ModelTooLarge(
            f"{config.model} leaves a KV cache for {num_tokens} tokens beside its weights and the "
            f"{working_bytes} bytes that its largest step was measured to take; {needed} are "
            "needed. Lower --max-num-batched-tokens, --max-pixels or --max-model-len"
        )
    return msgspec.structs.replace(
        plan,
        working_bytes=working_bytes + CUDA_OVERHEAD_BYTES,
        attention_bytes=0,  # measured with the rest
        num_blocks=num_blocks,
        kv_cache_bytes=num_blocks * plan.block_bytes,
        max_model_len=min(longest, num_tokens),
    )


@torch.inference_mode()
def largest_step_bytes(model: Model, config: EngineConfig, facts: ModelFacts) -> int:
    """Run the largest picture, then the largest chunk, and see what they take at their peak."""
    num_tokens = config.step_tokens
    num_blocks = math.ceil(num_tokens / config.block_size) + 1
    shape = model.text.geometry.kv_shape(num_blocks=num_blocks, block_size=config.block_size)
    attention = make_attention(model, shape)
    torch.cuda.synchronize(model.device)
    held = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    side = _largest_side(config, facts)
    model.vision.encode([torch.zeros(1, side, side, 3, dtype=torch.uint8)])
    token_ids = torch.zeros(num_tokens, dtype=torch.int64, device=model.device)
    plan = attention.plan([Rows(0, num_tokens, range(1, num_blocks))])
    hidden = model.text.forward(token_ids, token_ids.expand(3, -1), attention, plan, None)
    # The sampler holds a float32 copy of the logits, and another of their softmax.
    model.text.logits(hidden[: config.max_num_seqs]).float().softmax(dim=-1)
    torch.cuda.synchronize(model.device)
    return torch.cuda.max_memory_allocated(model.device) - held


def _largest_side(config: EngineConfig, facts: ModelFacts) -> int:
    """Side in pixels of a square that takes as many patches as one step encodes."""
    pixels = max(facts.max_pixels, config.step_patches * facts.patch_size**2)
    factor = facts.patch_size * facts.merge_size
    return math.isqrt(pixels) // factor * factor
