"""The engine's steps beside their matrix products alone: what everything else costs.

    python tests/load/engine_steps.py [--model mid] [--threads 2] [--rounds 5]

For each kind of step: the median over alternating rounds of the whole step in milliseconds, of the
same linear layers with nothing between them, and their ratio.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
import transformers
from checkout import commit
from checkpoint_folder import checkpoint_folder
from products import text_products, vision_products

from inference.attention import Rows
from inference.build import build_engine
from inference.config import EngineConfig
from inference.runner import Runner
from inference.vision import VisionModel

BLOCK_SIZE = 16
CONTEXT = 100


def text_step(runner: Runner, lengths: list[tuple[int, int]]) -> Callable[[], None]:
    """A step over rows (start, end), each in blocks of its own."""
    rows, block = [], 1
    for start, end in lengths:
        count = -(-end // BLOCK_SIZE)
        rows.append(Rows(start, end, list(range(block, block + count))))
        block += count
    total = sum(end - start for start, end in lengths)
    token_ids = torch.randint(0, 1000, (total,))
    positions = torch.cat([torch.arange(start, end) for start, end in lengths]).expand(3, -1)
    ends = torch.tensor([end - start for start, end in lengths]).cumsum(0) - 1
    text, attention = runner.model.text, runner._attention

    def run() -> None:
        hidden = text.forward(token_ids, positions, attention, attention.plan(rows), None)
        text.logits(hidden[ends]).argmax(-1).tolist()

    return torch.inference_mode()(run)


def vision_step(model: VisionModel, num_pictures: int) -> Callable[[], None]:
    """Encode pictures of 256 x 256."""
    pictures = [torch.randint(0, 256, (1, 256, 256, 3), dtype=torch.uint8)] * num_pictures

    def run() -> None:
        model.encode(pictures)

    return run


def measure(step: Callable[[], None], products: Callable[[], None], rounds: int) -> list[float]:
    """Medians of both in milliseconds, taken in turns."""
    times: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for slot, run in enumerate((step, products)):
            repeats = 10
            started = time.perf_counter()
            for _ in range(repeats):
                run()
            if turn:
                times[slot].append((time.perf_counter() - started) / repeats * 1000)
    return [statistics.median(samples) for samples in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    folder = checkpoint_folder(options.model)
    torch.set_num_threads(options.threads)
    engine = build_engine(EngineConfig(model=str(folder), max_model_len=8192))
    runner = engine.runner
    text, vision = runner.model.text, runner.model.vision
    cases: list[tuple[str, Callable[[], None], Callable[[], None]]] = []
    for batch in (1, 8, 32):
        step = text_step(runner, [(CONTEXT - 1, CONTEXT)] * batch)
        cases.append((f"decode, batch {batch}", step, text_products(text, batch, batch)))
    for tokens in (100, 800):
        step = text_step(runner, [(0, tokens)])
        cases.append((f"prefill, {tokens} tokens", step, text_products(text, tokens, 1)))
    for count in (1, 8):
        step = vision_step(vision, count)
        products = vision_products(vision, 256 * count)
        cases.append((f"vision, {count} x 256 patches", step, products))
    print(
        f"{folder.name}, {runner.model.dtype}, {options.threads} threads, {platform.processor()}"
        f" {os.cpu_count()} cores, torch {torch.__version__}, transformers"
        f" {transformers.__version__}, commit {commit()}, load {os.getloadavg()[0]:.1f}"
    )
    print("| step | ms | matrix products alone, ms | ratio |\n| --- | --- | --- | --- |")
    for name, step, products in cases:
        whole, alone = measure(step, products, options.rounds)
        print(f"| {name} | {whole:.1f} | {alone:.1f} | {whole / alone:.2f} |")


if __name__ == "__main__":
    main()
