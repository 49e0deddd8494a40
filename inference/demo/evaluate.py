"""Examine a demo checkpoint: `python -m inference.demo.evaluate`.

Asks through transformers' own classes: image bytes, the checkpoint's image processor and chat
template, greedy `generate` in bfloat16. Prints one line per task.
"""

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration

from inference.demo.examination import TASKS, Examiner, Question
from inference.demo.export import CHECKPOINT

_IMAGE_PAD = "<|image_pad|>"
_MAX_NEW_TOKENS = 160


class Candidate:
    """A checkpoint, ready to be asked."""

    def __init__(self, folder: Path = CHECKPOINT, dtype: torch.dtype = torch.bfloat16) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.processor = AutoImageProcessor.from_pretrained(folder)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()

    def answer(self, questions: Sequence[tuple[str, Sequence[bytes]]]) -> list[str]:
        """Answer several (question, picture files) in one batch."""
        images = [
            Image.open(io.BytesIO(file)).convert("RGB") for _, files in questions for file in files
        ]
        pictures = self.processor(images, return_tensors="pt") if images else {}
        cells = [int(grid.prod()) // 4 for grid in pictures["image_grid_thw"]] if images else []
        sizes = iter(cells)
        prompts = [self._prompt(text, [next(sizes) for _ in files]) for text, files in questions]
        inputs = self.tokenizer(prompts, return_tensors="pt", padding=True)
        is_image = inputs["input_ids"] == self.model.config.image_token_id
        with torch.inference_mode():
            # transformers mixes `generate` in where type checkers do not follow.
            output = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                mm_token_type_ids=is_image.int(),
                max_new_tokens=_MAX_NEW_TOKENS,
                do_sample=False,
                **pictures,
            )
        replies = output[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(replies, skip_special_tokens=True)

    def _prompt(self, text: str, cells: Sequence[int]) -> str:
        content = [{"type": "image"} for _ in cells] + [{"type": "text", "text": text}]
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, *after = prompt.split(_IMAGE_PAD)
        return before + "".join(
            _IMAGE_PAD * count + part for count, part in zip(cells, after, strict=True)
        )


def intersection_over_union(one: Sequence[float], two: Sequence[float]) -> float:
    """Return how well two boxes (left, top, right, bottom) agree, 0 to 1."""
    across = min(one[2], two[2]) - max(one[0], two[0])
    down = min(one[3], two[3]) - max(one[1], two[1])
    shared = max(0.0, across) * max(0.0, down)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, two)]
    return shared / (sum(areas) - shared) if sum(areas) > shared else 0.0


def score(question: Question, reply: str) -> dict[str, bool]:
    """Return what is right about a reply, by the name of the measure."""
    if question.task != "box":
        return {"exact": reply == question.exchange.answer}
    wanted = json.loads(question.exchange.answer)[0]
    try:
        told = json.loads(reply)[0]
        overlap = intersection_over_union(told["bbox_2d"], wanted["bbox_2d"])
        well_formed = told["label"] == wanted["label"] and len(told["bbox_2d"]) == 4
    except (ValueError, KeyError, IndexError, TypeError):
        overlap, well_formed = 0.0, False
    return {"JSON and label": well_formed, "IoU > .5": overlap > 0.5, "IoU > .75": overlap > 0.75}


def examine(
    candidate: Candidate, examiner: Examiner, task: str, batch_size: int
) -> Iterator[tuple[Question, str]]:
    """Yield each question of a task with the reply to it."""
    questions = examiner.questions(task)
    while batch := list(islice(questions, batch_size)):
        replies = candidate.answer([(item.exchange.question, item.images) for item in batch])
        yield from zip(batch, replies, strict=True)


def report(
    candidate: Candidate, examiner: Examiner, task: str, options: argparse.Namespace
) -> None:
    """Print a task's lines of the table, and some wrong replies where asked for."""
    marks: dict[str, list[bool]] = {}
    wrong: list[str] = []
    for question, reply in examine(candidate, examiner, task, options.batch_size):
        scores = score(question, reply)
        for measure, right in scores.items():
            marks.setdefault(measure, []).append(right)
        if not all(scores.values()):
            asked = question.exchange
            wrong.append(f"  {asked.question} {asked.answer!r}: {reply!r}")
    for measure, rights in marks.items():
        label = task if measure == "exact" else f"{task}, {measure}"
        print(f"| {label} | {len(rights)} | {100 * sum(rights) / len(rights):.1f} |")
    print(*wrong[: options.wrong], sep="\n", end="\n" if wrong[: options.wrong] else "", flush=True)


def main() -> None:
    """Print the table of results."""
    parser = argparse.ArgumentParser(prog="python -m inference.demo.evaluate", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--per-task", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--only", default="", help="examine tasks whose name contains this")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong replies a task")
    options = parser.parse_args()
    candidate = Candidate(options.checkpoint)
    print("| task | N | % |\n| --- | --- | --- |")
    for task in TASKS:
        if options.only in task:
            report(candidate, Examiner(options.seed, options.per_task), task, options)


if __name__ == "__main__":
    main()
