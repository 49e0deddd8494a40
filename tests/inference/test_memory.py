from typing import Any

import msgspec
import pytest

from inference.architecture import Architecture, TextArchitecture, VisionArchitecture
from inference.config import EngineConfig
from inference.device import DeviceMemory
from inference.footprint import block_bytes, logits_bytes, prefill_bytes, vision_bytes
from inference.memory import (
    CPU_POOL_BYTES,
    MIN_MODEL_LEN,
    MemoryPlan,
    ModelTooLarge,
    plan_memory,
)

GIBIBYTE = 1024**3


def family_member(**text: Any) -> Architecture:
    """A member of the published family; the defaults are the 8B model's."""
    numbers = {
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 12288,
        **text,
    }
    return Architecture(
        model_type="qwen3_vl",
        dtype="bfloat16",
        tie_word_embeddings=False,
        text=TextArchitecture(
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=262144,
            rope_theta=5e6,
            rope_type="default",
            mrope_section=(24, 20, 20),
            **numbers,
        ),
        vision=VisionArchitecture(
            depth=27,
            hidden_size=1152,
            num_heads=16,
            intermediate_size=4304,
            patch_size=16,
            spatial_merge_size=2,
            temporal_patch_size=2,
            out_hidden_size=numbers["hidden_size"],
            num_position_embeddings=2304,
            deepstack_visual_indexes=(8, 16, 24),
        ),
        image_token_id=151655,
        video_token_id=151656,
        vision_start_token_id=151652,
        vision_end_token_id=151653,
        eos_token_ids=(151645, 151643),
        min_pixels=65536,
        max_pixels=16777216,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.0,
    )


EIGHT_BILLION = family_member()
TWO_BILLION = family_member(
    num_hidden_layers=28, hidden_size=2048, num_attention_heads=16, intermediate_size=6144
)
THIRTY_BILLION = family_member(
    num_hidden_layers=48,
    hidden_size=2048,
    num_key_value_heads=4,
    intermediate_size=6144,
    num_experts=128,
    num_experts_per_tok=8,
    moe_intermediate_size=768,
)


def memory(free_gibibytes: float, total_gibibytes: float | None = None) -> DeviceMemory:
    free = int(free_gibibytes * GIBIBYTE)
    total = free if total_gibibytes is None else int(total_gibibytes * GIBIBYTE)
    return DeviceMemory(free, total)


def settings(**changes: Any) -> EngineConfig:
    return EngineConfig(model="Qwen/Qwen3-VL-8B-Instruct", **changes)


def capacity(plan: MemoryPlan, config: EngineConfig) -> int:
    """Tokens the pool holds: all blocks but the padding block."""
    return (plan.num_blocks - 1) * config.block_size


@pytest.mark.parametrize(
    ("architecture", "mebibytes"),
    [
        pytest.param(TWO_BILLION, 1.75, id="2B"),
        pytest.param(EIGHT_BILLION, 2.25, id="8B"),
        pytest.param(THIRTY_BILLION, 1.5, id="30B-A3B"),
    ],
)
def test_a_block_of_the_published_models_has_its_known_size(architecture, mebibytes):
    assert block_bytes(architecture, settings()) == mebibytes * 1024**2
    assert block_bytes(architecture, settings(dtype="float32")) == 2 * mebibytes * 1024**2


def test_a_large_gpu_holds_the_mixture_and_hundreds_of_thousands_of_tokens():
    plan = plan_memory(THIRTY_BILLION, settings(), memory(139), "cuda")

    assert round(plan.weights_bytes / GIBIBYTE, 1) == 57.9
    assert plan.max_model_len == 262144
    assert 600_000 < capacity(plan, settings()) < 760_000


def test_everything_together_stays_within_what_may_be_used():
    plan = plan_memory(EIGHT_BILLION, settings(), memory(70, 80), "cuda:1")

    assert plan.usable_bytes == 70 * GIBIBYTE
    assert 0.99 * plan.usable_bytes < plan.needed_bytes <= plan.usable_bytes
    assert plan.working_bytes > plan.prefill_bytes + plan.vision_bytes + plan.logits_bytes
    assert plan.kv_cache_bytes == plan.num_blocks * plan.block_bytes


def test_a_gpu_gives_only_the_share_that_is_set():
    config = settings(gpu_memory_utilization=0.5)

    plan = plan_memory(EIGHT_BILLION, config, memory(80), "cuda")

    assert plan.usable_bytes == 40 * GIBIBYTE


def test_a_request_length_nobody_asked_for_is_lowered_to_the_pool():
    config = settings()

    plan = plan_memory(EIGHT_BILLION, config, memory(24), "cuda")

    assert plan.max_model_len == capacity(plan, config)
    assert MIN_MODEL_LEN <= plan.max_model_len < 262144


def test_a_request_length_that_was_asked_for_is_kept_or_refused():
    config = settings(max_model_len=8192)

    plan = plan_memory(EIGHT_BILLION, config, memory(80), "cuda")

    assert plan.max_model_len == 8192
    with pytest.raises(ModelTooLarge, match=r"one request of 65536 tokens.*--max-model-len \d+"):
        plan_memory(EIGHT_BILLION, settings(max_model_len=65536), memory(24), "cuda")


def test_the_advised_request_length_fits():
    config = settings(max_model_len=65536)
    with pytest.raises(ModelTooLarge) as refusal:
        plan_memory(EIGHT_BILLION, config, memory(24), "cuda")
    advised = int(str(refusal.value).partition("--max-model-len ")[2].partition(";")[0])

    plan = plan_memory(EIGHT_BILLION, settings(max_model_len=advised), memory(24), "cuda")

    assert plan.max_model_len == advised
    with pytest.raises(ModelTooLarge):
        plan_memory(EIGHT_BILLION, settings(max_model_len=advised + 16), memory(24), "cuda")


def test_a_pool_is_no_larger_than_all_sequences_can_use():
    config = settings(max_num_seqs=2, max_model_len=1024)

    plan = plan_memory(TWO_BILLION, config, memory(139), "cuda")

    assert capacity(plan, config) == 2 * 1024


def test_a_cpu_pool_is_small_by_default():
    plan = plan_memory(TWO_BILLION, settings(), memory(64), "cpu")

    assert CPU_POOL_BYTES - plan.block_bytes < plan.kv_cache_bytes <= CPU_POOL_BYTES


def test_a_cpu_pool_takes_at_most_half_of_what_is_left():
    plan = plan_memory(TWO_BILLION, settings(), memory(8), "cpu")

    fixed = plan.weights_bytes + plan.working_bytes + plan.embedding_cache_bytes
    assert plan.kv_cache_bytes <= (plan.usable_bytes - fixed) / 2


def test_a_long_request_that_was_asked_for_enlarges_the_cpu_pool():
    config = settings(max_model_len=32768)

    plan = plan_memory(TWO_BILLION, config, memory(64), "cpu")

    assert capacity(plan, config) == 32768
    assert plan.kv_cache_bytes > CPU_POOL_BYTES


def test_a_pool_size_that_is_set_is_kept():
    config = settings(kv_cache_bytes=100 * 1024**2)

    plan = plan_memory(TWO_BILLION, config, memory(64), "cpu")

    assert plan.num_blocks == 57
    assert plan.max_model_len == 56 * 16


@pytest.mark.parametrize(
    ("size", "message"),
    [
        pytest.param(1000, "holds 0 tokens", id="less-than-two-blocks"),
        pytest.param(100 * GIBIBYTE, "KV cache as set.*leaving --kv-cache-bytes unset", id="huge"),
    ],
)
def test_a_pool_size_that_cannot_work_is_refused(size, message):
    with pytest.raises(ModelTooLarge, match=message):
        plan_memory(TWO_BILLION, settings(kv_cache_bytes=size), memory(64), "cpu")


def test_a_model_that_is_too_large_is_refused_with_numbers_and_a_smaller_one():
    with pytest.raises(ModelTooLarge) as refusal:
        plan_memory(THIRTY_BILLION, settings(), memory(20.3, 24), "cuda")

    message = str(refusal.value)
    assert "57.9 GiB weights in bfloat16" in message
    assert "free 20.3 GiB of 24.0 GiB" in message
    assert message.endswith(
        "Fits: a smaller model of the family, such as Qwen/Qwen3-VL-8B-Instruct"
    )


def test_a_narrower_type_is_advised_where_it_fits():
    with pytest.raises(ModelTooLarge, match="--dtype bfloat16"):
        plan_memory(EIGHT_BILLION, settings(dtype="float32"), memory(24), "cuda")


def test_smaller_steps_are_advised_where_they_fit():
    config = settings(max_num_encoded_patches=65536, max_num_batched_tokens=32768)

    with pytest.raises(
        ModelTooLarge, match="--max-num-batched-tokens 8192 with --max-num-encoded-patches 16384"
    ):
        plan_memory(TWO_BILLION, config, memory(12), "cuda")


def test_a_machine_without_room_for_any_member_is_told_so():
    with pytest.raises(ModelTooLarge, match="a device with more memory is needed"):
        plan_memory(TWO_BILLION, settings(), memory(0.25), "cpu")


def test_a_free_memory_that_grows_never_shrinks_the_plan():
    plans = [plan_memory(TWO_BILLION, settings(), memory(size), "cpu") for size in range(8, 40)]

    pools = [plan.num_blocks for plan in plans]
    assert pools == sorted(pools)


def test_work_grows_with_what_a_step_may_do():
    larger = settings(max_num_batched_tokens=4096, max_num_seqs=128, max_num_encoded_patches=32768)

    for work in (prefill_bytes, logits_bytes, vision_bytes):
        assert work(EIGHT_BILLION, larger) == 2 * work(EIGHT_BILLION, settings())


def test_one_picture_larger_than_a_step_is_provided_for():
    config = settings(max_pixels=16777216, max_num_encoded_patches=1024)

    same = settings(max_num_encoded_patches=65536)
    assert vision_bytes(EIGHT_BILLION, config) == vision_bytes(EIGHT_BILLION, same)


def test_a_plan_can_be_printed():
    plan = plan_memory(TWO_BILLION, settings(), memory(64), "cpu")

    assert msgspec.json.decode(msgspec.json.encode(plan), type=MemoryPlan) == plan
