"""Decoding and picture encoding on a GPU at the 30B-A3B shape, with random weights made there.

    python tests/load/gpu_decode.py [--shape 30b-a3b] [--batches 1 32 128] [--rounds 3]

Tokens a second of the engine's steps beside transformers' own `generate`, for batch 1 also beside
what reading the active weights takes at the bandwidth measured here; and a 1024 x 1024 picture
beside its matrix products alone. Medians over rounds. `--shape tiny --device cpu` is a dry run.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import torch
import transformers
from checkout import commit, program_line
from products import vision_products
from torch import Tensor
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache
from inference.engine import Engine
from inference.model import Model, take_over
from inference.protocol import Generate, Limits, ModelFacts, SamplingParams
from inference.runner import Runner
from inference.scheduler import Scheduler, SchedulerLimits
from inference.sequence import Owner
from inference.spans import VisualLayout

PROMPT_TOKENS = 128
NEW_TOKENS = 64
BLOCK_SIZE = 16
PICTURE_SIDE = 1024

_IDS: dict[str, Any] = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e6, "mrope_interleaved": True}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "30b-a3b": (
        {
            "vocab_size": 151936,
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "max_position_embeddings": 262144,
            "rope_parameters": {**_ROPE, "mrope_section": [24, 20, 20]},
        },
        {
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 2048,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24],
        },
    ),
    "tiny": (
        {
            "vocab_size": 151936,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {**_ROPE, "mrope_section": [4, 2, 2]},
        },
        {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 36,
            "deepstack_visual_indexes": [0],
        },
    ),
}


class NoGrammars:
    """These requests constrain nothing."""

    def compile(self, grammar: object) -> Future[Any]:
        """Never asked."""
        raise NotImplementedError

    def close(self) -> None:
        """Nothing runs."""


def build_source(shape: str, device: torch.device) -> Any:
    """transformers' model, its random weights made on the device in bfloat16."""
    text, vision = SHAPES[shape]
    config = Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_IDS)
    torch.manual_seed(0)
    with device:
        model = Qwen3VLMoeForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    return model.eval()


def build_engine(model: Model, max_num_seqs: int) -> Engine:
    """An engine for so many sequences of this measurement, and no tokenizer."""
    num_tokens = PROMPT_TOKENS + NEW_TOKENS + 2 * BLOCK_SIZE
    num_blocks = max_num_seqs * (-(-num_tokens // BLOCK_SIZE) + 1) + 1
    facts = ModelFacts(
        name="random",
        path="",
        model_type="qwen3_vl_moe",
        dtype="bfloat16",
        device=str(model.device),
        num_parameters=0,
        vocab_size=model.text.head.out_features,
        max_model_len=num_tokens,
        eos_token_ids=[],
        patch_size=model.vision.geometry.patch_size,
        merge_size=model.vision.geometry.merge_size,
        temporal_patch_size=model.vision.geometry.temporal_patch_size,
        min_pixels=1024,
        max_pixels=PICTURE_SIDE**2,
        **_IDS,
    )
    embeddings: EmbeddingCache[Tensor] = EmbeddingCache(1 << 26)
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=8192,
            max_num_encoded_patches=4096,
            block_size=BLOCK_SIZE,
            bytes_per_visual_token=model.bytes_per_visual_token,
        ),
        BlockPool(num_blocks),
        embeddings,
        VisualLayout.of(facts),
    )
    runner = Runner(model, num_blocks=num_blocks, block_size=BLOCK_SIZE, embeddings=embeddings)
    runner.capture_decodes(max_num_seqs)
    limits = Limits(
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=8192,
        max_queued_requests=max_num_seqs,
    )
    grammars: Any = NoGrammars()
    return Engine(facts, limits, scheduler, runner, grammars)


def prompts(batch: int) -> list[list[int]]:
    """Random prompts, all different, so that no prefix is shared."""
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 100000, (batch, PROMPT_TOKENS), generator=generator).tolist()


def engine_tokens_a_second(engine: Engine, batch: int) -> float:
    """Steps in which all sequences decode, from the second one on."""
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    for number, prompt in enumerate(prompts(batch)):
        engine.add(
            Owner(0),
            Generate(request_id=str(number), prompt_token_ids=prompt, sampling=sampling),
        )
    while engine.scheduler.waiting or any(
        sequence.num_computed_tokens < PROMPT_TOKENS for sequence in engine.scheduler.running
    ):
        engine.step()
    engine.step()
    started, num_steps = time.perf_counter(), 0
    while len(engine.scheduler.running) == batch:
        engine.step()
        num_steps += 1
    seconds = time.perf_counter() - started
    while engine.has_work:
        engine.step()
    engine.scheduler.blocks.forget_all()
    return batch * num_steps / seconds


def generate_tokens_a_second(source: Any, batch: int, device: torch.device) -> float:
    """transformers' `generate`, its prefill taken off."""
    ids = torch.tensor(prompts(batch), device=device)
    seconds = []
    for count in (1, NEW_TOKENS):
        wait(device)
        started = time.perf_counter()
        source.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
            eos_token_id=None,
            pad_token_id=0,
        )
        wait(device)
        seconds.append(time.perf_counter() - started)
    return batch * (NEW_TOKENS - 1) / (seconds[1] - seconds[0])


def active_bytes(source: Any) -> int:
    """Weights that one token's step reads: all but the embedding table and the idle experts."""
    text = source.config.text_config
    active = text.num_experts_per_tok / text.num_experts
    total = source.lm_head.weight.numel()
    for name, parameter in source.model.language_model.named_parameters():
        if "embed_tokens" not in name:
            total += int(parameter.numel() * (active if ".experts." in name else 1))
    return 2 * total


def bandwidth(device: torch.device) -> float:
    """Bytes a second of a copy on the device, read and written."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * source.numel() / median_seconds(lambda: target.copy_(source), device, 10)


def median_seconds(run: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median time of a call, after one that does not count."""
    seconds = []
    for turn in range(rounds + 1):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        if turn:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def wait(device: torch.device) -> None:
    """Let the device finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_rate(measure: Callable[[], float], rounds: int) -> float:
    """Median of a measurement, after one that does not count."""
    measure()
    return statistics.median(measure() for _ in range(rounds))


def heading(shape: str, device: torch.device) -> str:
    """Say what is measured, where and how."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    return (
        f"{shape}, bfloat16, {name}, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, commit {commit()}\n`{' '.join(program_line())}`\n"
    )


def picture_line(model: Model) -> str:
    """Measure one picture beside its matrix products alone."""
    pixels = torch.randint(0, 256, (1, PICTURE_SIDE, PICTURE_SIDE, 3), dtype=torch.uint8)
    num_patches = (PICTURE_SIDE // model.vision.geometry.patch_size) ** 2
    whole = median_seconds(lambda: model.vision.encode([pixels]), model.device, 10)
    alone = median_seconds(vision_products(model.vision, num_patches), model.device, 10)
    return (
        f"picture of {PICTURE_SIDE} x {PICTURE_SIDE}: {whole * 1000:.1f} ms, its matrix products"
        f" {alone * 1000:.1f} ms, ratio {whole / alone:.2f}"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="30b-a3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    device = torch.device(options.device)
    print(heading(options.shape, device))
    source = build_source(options.shape, device)
    num_bytes, speed = active_bytes(source), bandwidth(device)
    theirs = {
        batch: median_rate(partial(generate_tokens_a_second, source, batch, device), options.rounds)
        for batch in options.batches
    }
    model = take_over(source)
    engine = build_engine(model, max(options.batches))
    print("| batch | engine, tokens/s | generate, tokens/s | ratio |\n| --- | --- | --- | --- |")
    ours: dict[int, float] = {}
    for batch, rate in theirs.items():
        ours[batch] = median_rate(partial(engine_tokens_a_second, engine, batch), options.rounds)
        print(f"| {batch} | {ours[batch]:.0f} | {rate:.0f} | {ours[batch] / rate:.1f} |")
    if 1 in ours:
        bound = speed / num_bytes
        print(
            f"\nbatch 1 reads {num_bytes / 1e9:.2f} GB a step; at {speed / 1e12:.2f} TB/s that is"
            f" {bound:.0f} steps/s: {100 * ours[1] / bound:.0f} % of the bound"
        )
    print(f"\n{picture_line(model)}")


if __name__ == "__main__":
    main()
