"""The pool that fits beside a measured step: arithmetic, true on any machine."""

import msgspec
import pytest

from inference.config import EngineConfig
from inference.memory import MemoryPlan, ModelTooLarge

MEBIBYTE = 1024**2
GIBIBYTE = 1024**3
PLAN = MemoryPlan(
    device="cuda",
    dtype="bfloat16",
    free_bytes=80 * GIBIBYTE,
    total_bytes=80 * GIBIBYTE,
    usable_bytes=72 * GIBIBYTE,
    weights_bytes=58 * GIBIBYTE,
    prefill_bytes=0,
    vision_bytes=0,
    logits_bytes=0,
    working_bytes=0,
    attention_bytes=0,
    embedding_cache_bytes=0,
    block_bytes=MEBIBYTE,
    num_blocks=1,
    kv_cache_bytes=MEBIBYTE,
    max_model_len=1,
)
CONFIG = EngineConfig(embedding_cache_bytes=GIBIBYTE, max_num_seqs=64, block_size=16)


def resize(kernel_device, config=CONFIG, **changes):
    """The plan for 10 GiB, of which a step takes 2."""
    from inference.cuda.sizing import resized

    arguments = {"allowed_bytes": 10 * GIBIBYTE, "working_bytes": 2 * GIBIBYTE, "longest": 262144}
    return resized(PLAN, config, **{**arguments, **changes})


def test_the_pool_takes_what_a_step_and_the_caches_leave(kernel_device):
    plan = resize(kernel_device)

    assert plan.num_blocks == 6 * 1024  # 10 GiB less 2, a picture cache of 1, and 1 of overhead
    assert plan.kv_cache_bytes == 6 * GIBIBYTE
    assert plan.max_model_len == (plan.num_blocks - 1) * 16


def test_the_pool_is_no_larger_than_can_be_in_use(kernel_device):
    plan = resize(kernel_device, longest=1024)

    assert plan.num_blocks == 64 * 1024 // 16 + 1
    assert plan.max_model_len == 1024


@pytest.mark.parametrize(
    ("max_model_len", "longest", "allowed_bytes"),
    [
        pytest.param(None, 262144, 4 * GIBIBYTE + 64 * MEBIBYTE, id="no-useful-request"),
        pytest.param(262144, 262144, 10 * GIBIBYTE, id="not-the-one-asked-for"),
        pytest.param(None, 262144, -GIBIBYTE, id="nothing-left"),
    ],
)
def test_too_little_memory_is_said_with_numbers(
    kernel_device, max_model_len, longest, allowed_bytes
):
    config = msgspec.structs.replace(CONFIG, max_model_len=max_model_len)

    with pytest.raises(ModelTooLarge, match="tokens beside its weights"):
        resize(kernel_device, config, longest=longest, allowed_bytes=allowed_bytes)
