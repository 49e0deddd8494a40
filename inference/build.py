"""From a configuration to a warm engine: checkpoint, memory plan, parts, warm-up."""

import time
from collections.abc import Callable

import msgspec
import torch
from torch import Tensor

from inference.architecture import Architecture
from inference.blocks import BlockPool
from inference.checkpoint import model_facts, resolve_checkpoint, wanted_model_len
from inference.checkpoint_json import read_architecture
from inference.config import EngineConfig
from inference.device import MemoryWatch, device_memory, resolve_device
from inference.embeddings import EmbeddingCache
from inference.engine import Engine
from inference.grammar import GrammarCompiler
from inference.heap import keep_freed_memory
from inference.memory import MemoryPlan, plan_memory
from inference.model import Model, load_model
from inference.protocol import Generate, Limits, ModelFacts, SamplingParams, Vision
from inference.runner import Runner
from inference.scheduler import Scheduler, SchedulerLimits
from inference.sequence import Owner
from inference.spans import VisualLayout

# The warm-up's owner; workers are numbered from 0.
_NOBODY = Owner(-1)
# What may wait by default: so much is computed within minutes, or was not worth waiting for.
_POOLS_OF_QUEUED_TOKENS = 4


def build_engine(
    config: EngineConfig, progress: Callable[[str], None] = lambda stage: None
) -> Engine:
    """Make an engine that is ready to serve.

    Raises:
        CheckpointError, DeviceError, ModelTooLarge: starting again would fail the same way; the
            message is for a person.
    """
    progress("reading the checkpoint")
    path = resolve_checkpoint(config, progress)
    architecture = read_architecture(path)
    device = resolve_device(config.device)
    config = msgspec.structs.replace(config, device=device)
    spread = config.device_map is not None
    plan = plan_memory(architecture, config, device_memory(device, spread=spread), device)
    facts = msgspec.structs.replace(
        model_facts(architecture, config, path), device=device, max_model_len=plan.max_model_len
    )
    _prepare_process(device, config.num_threads)
    progress("loading the weights")
    model = load_model(
        path,
        dtype=getattr(torch, facts.dtype),
        device=torch.device(device),
        device_map=config.device_map,
    )
    if device != "cpu" and not spread:
        progress("measuring the largest step")
        plan = _measure(plan, model, config, facts, architecture)
        facts = msgspec.structs.replace(facts, max_model_len=plan.max_model_len)
    embeddings: EmbeddingCache[Tensor] = EmbeddingCache(config.embedding_cache_bytes)
    scheduler = Scheduler(
        _scheduler_limits(config, model),
        BlockPool(plan.num_blocks),
        embeddings,
        VisualLayout.of(facts),
    )
    runner = Runner(
        model, num_blocks=plan.num_blocks, block_size=config.block_size, embeddings=embeddings
    )
    if device != "cpu" and not spread:
        progress("capturing decode steps")
        runner.capture_decodes(config.max_num_seqs)
    watch = MemoryWatch(device)
    engine = Engine(
        facts,
        _limits(config, plan),
        scheduler,
        runner,
        GrammarCompiler(path / "tokenizer.json", facts.vocab_size, facts.eos_token_ids),
        is_memory_short=watch.is_short,
    )
    progress("warming up")
    warm_up(engine)
    return engine


def _prepare_process(device: str, num_threads: int | None) -> None:
    if device == "cpu":
        keep_freed_memory()
    else:
        # Kernels and graphs go to the current device.
        torch.cuda.set_device(torch.device(device).index or 0)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _scheduler_limits(config: EngineConfig, model: Model) -> SchedulerLimits:
    return SchedulerLimits(
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.step_tokens,
        max_num_encoded_patches=config.step_patches,
        block_size=config.block_size,
        bytes_per_visual_token=model.bytes_per_visual_token,
    )


def _limits(config: EngineConfig, plan: MemoryPlan) -> Limits:
    return Limits(
        block_size=config.block_size,
        num_blocks=plan.num_blocks,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.step_tokens,
        max_queued_requests=config.max_queued_requests,
        max_num_encoded_patches=config.step_patches,
        max_queued_tokens=config.max_queued_tokens
        or _POOLS_OF_QUEUED_TOKENS * plan.num_blocks * config.block_size,
        max_queued_patches=config.max_queued_patches,
        max_queued_seconds=config.max_queued_seconds,
    )


def _measure(
    plan: MemoryPlan,
    model: Model,
    config: EngineConfig,
    facts: ModelFacts,
    architecture: Architecture,
) -> MemoryPlan:
    # Triton comes with torch's CUDA build alone.
    from inference.cuda.sizing import measured_plan

    longest = wanted_model_len(architecture, config)
    return measured_plan(plan, model, config, facts, longest=longest)


def warm_up(engine: Engine) -> None:
    """Answer a few requests of every kind, so that the first client pays for no first time.

    Raises:
        RuntimeError: the model cannot generate.
    """
    for batch in (1, 2, 8):
        for number in range(min(batch, engine.limits.max_num_seqs)):
            engine.add(_NOBODY, _trial_request(engine.model, f"warm-up-{number}", number))
        give_up_time = time.monotonic() + 120
        while engine.has_work:
            for _, message in engine.step():
                if not hasattr(message, "token_ids"):
                    raise RuntimeError(f"the warm-up was refused: {message}")
            if time.monotonic() > give_up_time:
                raise RuntimeError("the warm-up does not end")
    engine.gate.forget_pace()
    engine.scheduler.blocks.forget_all()
    engine.scheduler.embeddings.clear()


def _trial_request(model: ModelFacts, request_id: str, number: int) -> Generate:
    side = model.patch_size * model.merge_size * 2
    pixels = bytes([number]) * (side * side * 3)
    visual = [model.image_token_id] * 4
    return Generate(
        request_id=request_id,
        prompt_token_ids=[
            model.vision_start_token_id,
            *visual,
            model.vision_end_token_id,
            *range(number + 8),
        ],
        sampling=SamplingParams(max_tokens=4, ignore_eos=True),
        visions=[
            Vision(
                height=side,
                width=side,
                pixels=memoryview(pixels),
                content_hash=bytes([number]) * 32,
            )
        ],
    )
