"""The same load through `Engine.step()` in one process: what HTTP has to reach.

    python tests/load/engine_direct.py [--model mid] [--scenario chat-image]
        [--concurrency 1,8,32] [--seconds 10] [--round 0]

Pictures are decoded and prompts built beforehand. Prints the figures as one line of JSON a level;
`chat_image.py --servers loupe,direct` runs it in turns with the service.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from checkout import ROOT
from checkpoint_folder import checkpoint_folder
from servers import clean_environ

from inference.config import EngineConfig
from inference.protocol import Delta, Generate, SamplingParams, Vision
from service.config import Settings
from service.conversation import Bytes, MediaPart, Message, TextPart
from service.load.client import Answer, Load
from service.load.figures import Figures, summarise
from service.load.rounds import WARM_UP_LEVEL
from service.load.scenarios import SCENARIOS, Ask, Scenario, number_of
from service.media.budget import MediaLimits
from service.media.decode import DecodedImage, SourceBounds, decode
from service.media.resize import ResizeBounds
from service.processes.threads import plan_threads
from service.text.prompt import PromptBuilder

if TYPE_CHECKING:
    from inference.engine import Engine

_MAX_SECONDS = 1800


class Question(NamedTuple):
    """A question as the engine gets it."""

    ask: Ask
    generate: Generate


def measure_direct(
    folder: Path, scenario: str, levels: Sequence[int], seconds: float, number: int
) -> list[Figures]:
    """Run this program in a process of its own."""
    command = [
        sys.executable, __file__, "--model", str(folder), "--scenario", scenario,
        "--concurrency", ",".join(map(str, levels)), "--seconds", str(seconds),
        "--round", str(number),
    ]  # fmt: skip
    finished = subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environ({}),
        stdout=subprocess.PIPE,
        check=True,
        # Like the servers: where the kernel shares the cores out by session, it has its own share.
        start_new_session=True,
    )
    return [msgspec.json.decode(line, type=Figures) for line in finished.stdout.splitlines()]


class Questions:
    """Makes questions as a web worker would."""

    def __init__(self, engine: "Engine") -> None:
        model = engine.model
        limits = MediaLimits()
        self._prompts = PromptBuilder(model)
        self._source = SourceBounds(limits.formats, limits.max_image_pixels)
        self._bounds = ResizeBounds(
            factor=model.patch_size * model.merge_size,
            min_pixels=model.min_pixels,
            max_pixels=model.max_pixels,
        )

    def make(self, scenario: Scenario, number: int, level: int, count: int) -> list[Question]:
        asks = [scenario.ask(number_of(number, level, place)) for place in range(count)]
        return [Question(ask, self._generate(ask, str(place))) for place, ask in enumerate(asks)]

    def _generate(self, ask: Ask, request_id: str) -> Generate:
        decoded = [decode(data, self._source, self._bounds) for _, data in ask.images]
        parts = (
            *(MediaPart(source=Bytes(data), param="images") for _, data in ask.images),
            TextPart(ask.text),
        )
        prompt = self._prompts.build([Message("user", parts)], decoded)
        sampling = SamplingParams(
            max_tokens=ask.max_tokens,
            temperature=0.0,
            ignore_eos=True,
            repetition_guard=False,
        )
        return Generate(
            request_id=request_id,
            prompt_token_ids=prompt.token_ids,
            sampling=sampling,
            visions=[_vision(image) for image in decoded],
        )


def closed_loop(
    engine: "Engine", questions: Sequence[Question], concurrency: int, seconds: float
) -> Load:
    """Keep so many questions in the engine, add new ones for so long, and finish."""
    from inference.sequence import Owner

    waiting = iter(questions)
    open_ones: dict[str, tuple[Question, Answer, float]] = {}
    answers: list[Answer] = []
    num_added = 0
    started = time.perf_counter()

    def refill() -> None:
        nonlocal num_added
        while len(open_ones) < concurrency:
            now = time.perf_counter()
            if num_added >= concurrency and now - started >= seconds:
                return
            question = next(waiting, None)
            if question is None:
                return
            request_id = question.generate.request_id
            open_ones[request_id] = (question, Answer(kind=question.ask.kind), now)
            engine.add(Owner(0), question.generate)
            num_added += 1

    refill()
    while open_ones and time.perf_counter() - started < _MAX_SECONDS:
        outputs = engine.step()
        now = time.perf_counter()
        for _, message in outputs:
            question, answer, asked = open_ones[message.request_id]
            _note(answer, message, question.ask, now - asked)
            if not isinstance(message, Delta) or message.finish is not None:
                del open_ones[message.request_id]
                answers.append(answer)
        refill()
    return Load(answers, time.perf_counter() - started, 0.0)


def _note(answer: Answer, message: object, ask: Ask, now: float) -> None:
    answer.seconds = now
    if not isinstance(message, Delta):
        answer.fault = "refused"
        return
    if message.token_ids:
        answer.event_times.append(now)
    if message.finish is not None:
        answer.num_tokens = message.finish.num_output_tokens
        if answer.num_tokens != ask.max_tokens:
            answer.fault = f"{answer.num_tokens} tokens instead of {ask.max_tokens}"


def _vision(image: DecodedImage) -> Vision:
    return Vision(
        height=image.height,
        width=image.width,
        pixels=memoryview(image.pixels),
        content_hash=image.content_hash,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="mid")
    parser.add_argument("--scenario", default="chat-image", choices=[*SCENARIOS])
    parser.add_argument("--concurrency", default="1,8,32")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--round", type=int, default=0)
    options = parser.parse_args()
    scenario = SCENARIOS[options.scenario]
    folder = checkpoint_folder(options.model, scenario.max_pixels)
    # As the supervisor sets them for its inference process; read when torch loads.
    os.environ.update(plan_threads(Settings(), os.environ).variables)
    from inference.build import build_engine

    engine = build_engine(EngineConfig(model=str(folder)))
    questions = Questions(engine)
    warm_up = questions.make(SCENARIOS["chat-image"], options.round, WARM_UP_LEVEL, 9)
    closed_loop(engine, warm_up, 8, 0)
    for level in map(int, options.concurrency.split(",")):
        count = max(int(scenario.most_per_second * options.seconds), 2 * level)
        prepared = questions.make(scenario, options.round, level, count)
        figures = summarise(closed_loop(engine, prepared, level, options.seconds))
        print(msgspec.json.encode(figures).decode(), flush=True)


if __name__ == "__main__":
    main()
