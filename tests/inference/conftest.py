"""The tiny model's answers, and engines over it."""

import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor

# The module beside this one: tests have no packages.
sys.path.insert(0, str(Path(__file__).parent))

from tiny_model import (
    FACTS,
    Case,
    build_source,
    case,
    forced_logits,
    model_inputs,
    oracle,
    picture,
    text,
)

from inference.answers import Output
from inference.blocks import BlockPool
from inference.embeddings import EmbeddingCache
from inference.engine import Engine
from inference.model import Model, take_over
from inference.protocol import (
    Delta,
    Generate,
    Isolated,
    Limits,
    ModelFacts,
    Refused,
    SamplingParams,
    Vision,
)
from inference.runner import Runner
from inference.scheduler import Scheduler, SchedulerLimits
from inference.sequence import Owner
from inference.spans import VisualLayout

ME = Owner(0)


class NoGrammars:
    """For engines whose requests constrain nothing."""

    def compile(self, grammar: object) -> Future[Any]:
        raise AssertionError("this engine compiles no grammars")


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    """Requests of every kind the engine batches; grids whose rope delta is not zero."""
    return {
        "one token": case(text(1, 1)),
        "text": case(text(37, 2)),
        "one picture": case(text(5, 3), picture(3, 4, 1), text(9, 4)),
        "three pictures": case(
            text(2, 5), picture(2, 3, 2), text(3, 6), picture(4, 2, 3), picture(2, 2, 4), text(8, 7)
        ),
        "tall picture": case(picture(12, 1, 5), text(6, 8)),
        "video": case(text(4, 9), picture(2, 3, 6, 6, video=True), text(5, 10)),
        "picture and video": case(
            picture(3, 3, 7), text(3, 11), picture(3, 2, 8, 4, video=True), text(4, 12)
        ),
    }


@pytest.fixture(scope="session")
def sources() -> dict[str, Any]:
    """transformers' models, whole: the oracles."""
    return {kind: build_source(kind) for kind in ("dense", "moe")}


@pytest.fixture(scope="session")
def models() -> dict[str, Model]:
    """The same weights taken over by our forwards."""
    return {kind: take_over(build_source(kind)) for kind in ("dense", "moe")}


@pytest.fixture(scope="session")
def expected(sources: dict[str, Any], cases: dict[str, Case]) -> dict[str, dict[str, list[int]]]:
    """The oracle's twenty tokens for every model and case."""
    return {
        kind: {name: oracle(source, request, 20) for name, request in cases.items()}
        for kind, source in sources.items()
    }


def make_engine(
    model: Model,
    *,
    num_blocks: int = 400,
    max_num_seqs: int = 16,
    max_num_batched_tokens: int = 512,
    max_num_encoded_patches: int = 4096,
    embedding_cache_bytes: int = 1 << 24,
    max_queued_requests: int = 64,
    block_size: int = 16,
    grammars: Any = None,
    **parts: Any,
) -> Engine:
    """An engine over a tiny model, with everything that bounds it in the test's hands.

    parts: further arguments of `Engine`.
    """
    embeddings: EmbeddingCache[Tensor] = EmbeddingCache(embedding_cache_bytes)
    scheduler = Scheduler(
        SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_encoded_patches=max_num_encoded_patches,
            block_size=block_size,
            bytes_per_visual_token=model.bytes_per_visual_token,
        ),
        BlockPool(num_blocks),
        embeddings,
        VisualLayout.of(FACTS),
    )
    limits = Limits(
        block_size=block_size,
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_queued_requests=max_queued_requests,
    )
    runner = Runner(model, num_blocks=num_blocks, block_size=block_size, embeddings=embeddings)
    return Engine(FACTS, limits, scheduler, runner, grammars or cast("Any", NoGrammars()), **parts)


def sampling(max_tokens: int = 20, **changes: Any) -> SamplingParams:
    """Greedy, ends ignored, unless changed."""
    return SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **changes})


def generate(
    request: Case, request_id: str = "r", num_tokens: int = 20, **changes: Any
) -> Generate:
    """The wire message for a request."""
    fields: dict[str, Any] = {"sampling": sampling(num_tokens), **changes}
    return Generate(
        request_id=request_id,
        prompt_token_ids=request.prompt_token_ids,
        visions=request.visions,
        **fields,
    )


class Answers:
    """Collects what an engine says, and checks that each sequence ends exactly once."""

    def __init__(self) -> None:
        self.token_ids: dict[tuple[str, int], list[int]] = {}
        self.deltas: dict[tuple[str, int], list[Delta]] = {}
        self.refused: dict[str, Refused] = {}

    def take(self, outputs: Iterable[Output]) -> None:
        """Add one step's outputs."""
        for _, message in outputs:
            assert not isinstance(message, Isolated)  # no request here is a suspect
            if isinstance(message, Refused):
                assert message.request_id not in self.refused
                self.refused[message.request_id] = message
                continue
            key = (message.request_id, message.index)
            previous = self.deltas.setdefault(key, [])
            assert not previous or previous[-1].finish is None
            previous.append(message)
            self.token_ids.setdefault(key, []).extend(message.token_ids)

    def admission(self, request_id: str, index: int = 0) -> Any:
        """How a sequence began."""
        return self.deltas[request_id, index][0].admission

    def finish(self, request_id: str, index: int = 0) -> Any:
        """How a sequence ended."""
        return self.deltas[request_id, index][-1].finish


def run(engine: Engine, answers: Answers | None = None, max_steps: int = 5000) -> Answers:
    """Step until nothing is left to do; the engine then holds nothing."""
    answers = answers or Answers()
    for _ in range(max_steps):
        if not engine.has_work:
            break
        answers.take(engine.step())
        engine.scheduler.check_integrity()
    assert not engine.has_work
    assert engine.scheduler.blocks.num_free == engine.scheduler.blocks.num_usable
    return answers


@dataclass(frozen=True)
class Kit:
    """The helpers above, as one fixture: test modules cannot import each other."""

    make_engine: Callable[..., Engine]
    sampling: Callable[..., SamplingParams]
    generate: Callable[..., Generate]
    run: Callable[..., Answers]
    answers: type[Answers]
    case: Callable[..., Case]
    picture: Callable[..., Vision]
    text: Callable[[int, int], list[int]]
    build_source: Callable[..., Any]
    model_inputs: Callable[[Any, Case], dict[str, Tensor]]
    oracle: Callable[[Any, Case, int], list[int]]
    forced_logits: Callable[[Any, Case, list[int]], Tensor]
    facts: ModelFacts
    owner: Owner


@pytest.fixture(scope="session")
def kit() -> Kit:
    """Helpers to build, feed and drain engines."""
    return Kit(
        make_engine=make_engine,
        sampling=sampling,
        generate=generate,
        run=run,
        answers=Answers,
        case=case,
        picture=picture,
        text=text,
        build_source=build_source,
        model_inputs=model_inputs,
        oracle=oracle,
        forced_logits=forced_logits,
        facts=FACTS,
        owner=ME,
    )
