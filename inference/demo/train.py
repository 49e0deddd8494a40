"""Train the demo model from scratch: `python -m inference.demo.train`.

Two stages: the vision tower learns to label its cells, then everything learns to answer. Run on
CPU processes of one thread each; a step depends on the seed and its number alone, so a run that
was stopped goes on where it was.
"""

import argparse
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from inference.demo.batch import Batch, joint_batch, vision_batch
from inference.demo.export import export
from inference.demo.lessons import form_of_step, grid_of_step, joint_lessons, vision_lessons
from inference.demo.losses import answer_loss, binding_loss, cell_loss
from inference.demo.model import first_heads, first_weights
from inference.demo.network import Weights, read, see
from inference.demo.optimizer import (
    Finish,
    FlatWeights,
    Optimizer,
    Rates,
    load_optimizer,
    load_weights,
    save_state,
)

log = logging.getLogger("loupe.demo.train")

CELL_SHARE, BINDING_SHARE = 0.3, 0.7
_REPORT_STEPS, _SAVE_STEPS = 50, 200
_POLISH_LESSONS = 1_000_000
"""The polish stage's lessons are numbered from here, so that none is seen twice."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A training run; the defaults made the shipped checkpoint.

    The joint stage follows a cosine over joint_steps, and leaves it at finish_first to decay
    within finish_steps; with 0 of these it goes all the way. The polish stage is the joint one
    once more, from a lower rate.
    """

    seed: int = 20
    processes: int = 2
    vision_steps: int = 2500
    vision_pictures: int = 32
    joint_steps: int = 7500
    finish_first: int = 960
    finish_steps: int = 1400
    polish_steps: int = 1000
    joint_lessons: int = 20
    work: Path = Path("/tmp/loupe-demo")  # noqa: S108 - a default people may see and delete
    output: Path = Path(__file__).parent / "checkpoint"

    def rates(self, stage: str) -> Rates:
        """Return a stage's learning rates."""
        if stage == "vision":
            return Rates({"vision": 2e-3, "heads": 2e-3}, 80, self.vision_steps)
        if stage == "polish":
            return Rates({"vision": 6e-4, "heads": 1e-3, "text": 1e-3}, 50, self.polish_steps)
        finish = Finish(self.finish_first, self.finish_steps) if self.finish_steps else None
        sections = {"vision": 6e-4, "heads": 1.8e-3, "text": 1.8e-3}
        return Rates(sections, 150, self.joint_steps, finish)


@dataclass(slots=True)
class Report:
    """Metrics since the last line of the log; answers are scored before they are learned."""

    sums: defaultdict[str, list[float]]
    right: defaultdict[str, list[bool]]

    def add(self, metrics: dict[str, float]) -> None:
        """Count a step's metrics in."""
        for name, value in metrics.items():
            self.sums[name].append(value)

    def line(self) -> dict[str, float | str]:
        """Return the means and the shares of right answers, in percent, and start again."""
        means: dict[str, float | str] = {n: round(sum(v) / len(v), 3) for n, v in self.sums.items()}
        shares = {
            task: f"{100 * sum(r) / len(r):.0f}/{len(r)}" for task, r in sorted(self.right.items())
        }
        self.sums.clear()
        self.right.clear()
        return means | shares


def vision_loss(weights: Weights, batch: Batch, report: Report) -> Tensor:
    """Return the loss of a vision step."""
    if batch.pixels is None or batch.cells is None:
        raise ValueError("a vision step needs pictures")
    loss, metrics = cell_loss(
        weights, see(weights, batch.pixels.to(_dtype(weights)), batch.grid), batch.cells
    )
    report.add(metrics | {"loss": loss.item()})
    return loss


def joint_loss(weights: Weights, batch: Batch, report: Report) -> Tensor:
    """Return the loss of a joint step: answers, cells and binding."""
    if batch.text is None or batch.answers is None:
        raise ValueError("a joint step needs conversations")
    sight, cells = None, torch.zeros(())
    if batch.pixels is not None and batch.cells is not None:
        sight = see(weights, batch.pixels.to(_dtype(weights)), batch.grid)
        cells, metrics = cell_loss(weights, sight, batch.cells)
        report.add({f"cell {name}": value for name, value in metrics.items()})
    reading = read(weights, batch.text, sight)
    answers, right = answer_loss(reading, batch.answers)
    binding, metrics = binding_loss(weights, reading, batch.answers)
    report.add(metrics | {"answers": answers.item(), "cells": cells.item()})
    for task, marks in right.items():
        report.right[task] += marks
    return answers + CELL_SHARE * cells + BINDING_SHARE * binding


def _dtype(weights: Weights) -> torch.dtype:
    return next(iter(weights.values())).dtype


def _vision_batch(plan: Plan, step: int, rank: int) -> Batch:
    lessons = vision_lessons(plan.seed, step, rank, plan.vision_pictures)
    return vision_batch(lessons, grid_of_step(plan.seed, step))


def _joint_batch(plan: Plan, step: int, rank: int) -> Batch:
    lessons = joint_lessons(plan.seed, step, rank, plan.joint_lessons)
    return joint_batch(lessons, form_of_step(plan.seed, step))


def _polish_batch(plan: Plan, step: int, rank: int) -> Batch:
    return _joint_batch(plan, _POLISH_LESSONS + step, rank)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of training: where its steps come from and what they minimise."""

    name: str
    batch: Callable[[Plan, int, int], Batch]
    loss: Callable[[Weights, Batch, Report], Tensor]


STAGES = (
    Stage("vision", _vision_batch, vision_loss),
    Stage("joint", _joint_batch, joint_loss),
    Stage("polish", _polish_batch, joint_loss),
)


def run(plan: Plan, rank: int) -> None:
    """Train all stages as one of `plan.processes`, from the saved state if there is one."""
    weights = FlatWeights(first_weights(plan.seed) | first_heads(plan.seed))
    saved = plan.work / "state.pt"
    stage_name, step = load_weights(saved, weights) if saved.exists() else ("vision", 0)
    started = [stage.name for stage in STAGES].index(stage_name)
    for stage in STAGES[started:]:
        optimizer = Optimizer(weights, plan.rates(stage.name))
        if step:
            load_optimizer(saved, optimizer)
        _run_stage(plan, stage, weights, optimizer, step, rank)
        step = 0
    if rank == 0:
        export(weights.views(torch.float32), plan.output)


def _run_stage(
    plan: Plan, stage: Stage, weights: FlatWeights, optimizer: Optimizer, first: int, rank: int
) -> None:
    report = Report(defaultdict(list), defaultdict(list))
    since = time.perf_counter()
    for step in range(first, optimizer.rates.total_steps):
        batch = stage.batch(plan, step, rank)
        drawn = time.perf_counter()
        loss = stage.loss(weights.views(torch.bfloat16), batch, report)
        loss.backward()
        norms = optimizer.step(optimizer.rates.share_at(step))
        report.add({f"norm {name}": norm for name, norm in norms.items()})
        report.add({"step seconds": time.perf_counter() - since, "drawing": drawn - since})
        since = time.perf_counter()
        if (step + 1) % _REPORT_STEPS == 0 and rank == 0:
            log.info(json.dumps({"stage": stage.name, "step": step + 1} | report.line()))
        last = step + 1 == optimizer.rates.total_steps
        if rank == 0 and ((step + 1) % _SAVE_STEPS == 0 and not last):
            save_state(plan.work / "state.pt", weights, optimizer, stage.name, step + 1)
        if rank == 0 and last:
            save_state(plan.work / f"{stage.name}.pt", weights, optimizer, stage.name, step + 1)


def _process(rank: int, plan: Plan) -> None:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if plan.processes > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{(plan.work / 'rendezvous').resolve()}",
            rank=rank,
            world_size=plan.processes,
            timeout=timedelta(minutes=10),
        )
    run(plan, rank)
    if dist.is_initialized():
        dist.destroy_process_group()


def main() -> None:
    """Read the plan from the command line and run it."""
    parser = argparse.ArgumentParser(prog="python -m inference.demo.train", description=__doc__)
    for name, default in asdict(Plan()).items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default)
    plan = Plan(**vars(parser.parse_args()))
    plan.work.mkdir(parents=True, exist_ok=True)
    (plan.work / "rendezvous").unlink(missing_ok=True)
    spawn(_process, (plan,), nprocs=plan.processes)


if __name__ == "__main__":
    main()
