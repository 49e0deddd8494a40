"""The worker's end of the wire against an engine in a process of its own that misbehaves."""

import mmap
import os
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import Thread

import anyio
import msgspec
import pytest

import service.engine.engine_link
from inference.frames import MAX_FRAME_BYTES
from inference.protocol import (
    Delta,
    FinishReason,
    Generate,
    RefusalCode,
    SamplingParams,
    Stats,
    Vision,
)
from service.engine.engine_client import EngineClient
from service.engine.engine_request import EngineRequest
from service.engine.replay_policy import ReplayPolicy
from service.errors import ContextLengthExceeded, EngineUnavailable, ServiceError

# What the scripted engine says: token k of sequence i.
TOKEN_IDS = [65, 66, 67, 68, 69, 70, 71]


def said(index: int, length: int) -> list[int]:
    return [TOKEN_IDS[(place + index) % len(TOKEN_IDS)] for place in range(length)]


def request(
    request_id: str = "r",
    max_tokens: int = 20,
    num_sequences: int = 1,
    visions: Sequence[Vision] = (),
    script: dict[str, object] | None = None,
) -> Generate:
    return Generate(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3, 4],
        sampling=SamplingParams(max_tokens=max_tokens),
        visions=list(visions),
        num_sequences=num_sequences,
        tenant=msgspec.json.encode(script).decode() if script else "",
    )


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what is waited for tells nobody
        await anyio.sleep(0.005)


class Outcome:
    """Everything a consumer saw of one request."""

    def __init__(self) -> None:
        self.token_ids: dict[int, list[int]] = {}
        self.finishes: list[tuple[int, FinishReason, int]] = []
        self.errors: list[str] = []
        self.admissions: list[tuple[int, float]] = []
        self.num_deltas = 0

    def add(self, delta: Delta) -> None:
        self.num_deltas += 1
        self.token_ids.setdefault(delta.index, []).extend(delta.token_ids)
        if delta.admission is not None:
            self.admissions.append((delta.index, delta.admission.queue_seconds))
        if delta.finish is not None:
            finish = delta.finish
            self.finishes.append((delta.index, finish.reason, finish.num_output_tokens))


async def consume(client: EngineClient, generate: Generate, pause: float = 0.0) -> Outcome:
    outcome = Outcome()
    try:
        async for delta in client.generate(generate):
            outcome.add(delta)
            if pause:
                await anyio.sleep(pause)
    except ServiceError as error:
        outcome.errors.append(error.code)
    return outcome


@asynccontextmanager
async def connected(
    engine, max_losses: int = 2, max_wait_seconds: float = 30.0, max_waiting: int = 64
) -> AsyncIterator[EngineClient]:
    policy = ReplayPolicy(
        max_losses=max_losses, max_wait_seconds=max_wait_seconds, max_waiting=max_waiting
    )
    with anyio.fail_after(60):
        async with EngineClient(engine.address, engine.authkey, policy) as client:
            await client.wait_ready()
            yield client
            assert client.num_unfinished == 0


async def all_of(client: EngineClient, generates: Sequence[Generate]) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}

    async def run(generate: Generate) -> None:
        outcomes[generate.request_id] = await consume(client, generate)

    async with anyio.create_task_group() as tasks:
        for generate in generates:
            tasks.start_soon(run, generate)
    return [outcomes[generate.request_id] for generate in generates]


@pytest.fixture
def engine(null_engine):
    return null_engine()


async def test_before_the_first_engine_requests_are_refused_as_starting(null_engine):
    engine = null_engine(start_seconds=0.3)
    async with EngineClient(engine.address, engine.authkey) as client:
        assert not client.is_ready
        assert client.model is None
        with pytest.raises(EngineUnavailable) as refusal:
            await anext(client.generate(request()))
        await client.wait_ready()

        assert refusal.value.code == "engine_starting"
        assert refusal.value.retry_after_seconds is not None
        assert client.is_ready
        assert client.model is not None
        assert client.limits is not None


@pytest.mark.parametrize("tokens_per_delta", [1, 3, 0])
async def test_a_request_gets_its_tokens_and_one_finish(null_engine, tokens_per_delta: int):
    async with connected(null_engine(tokens_per_delta=tokens_per_delta)) as client:
        outcome = await consume(client, request(max_tokens=20))

    assert outcome.token_ids == {0: said(0, 20)}
    assert outcome.finishes == [(0, FinishReason.LENGTH, 20)]


async def test_every_sequence_of_a_request_ends_by_itself(null_engine):
    async with connected(null_engine(num_tokens=3, num_more=4)) as client:
        outcome = await consume(client, request(num_sequences=3))

    assert outcome.token_ids == {0: said(0, 3), 1: said(1, 7), 2: said(2, 11)}
    assert sorted(outcome.finishes) == [
        (0, FinishReason.STOP, 3),
        (1, FinishReason.STOP, 7),
        (2, FinishReason.STOP, 11),
    ]


async def test_many_requests_share_the_wire(engine):
    async with connected(engine) as client:
        outcomes = await all_of(client, [request(str(i), max_tokens=i + 1) for i in range(50)])

    assert [outcome.token_ids[0] for outcome in outcomes] == [said(0, i + 1) for i in range(50)]


async def test_a_slow_consumer_gets_everything_in_fewer_pieces(null_engine):
    async with connected(null_engine()) as client:
        outcome = await consume(client, request(max_tokens=500), pause=0.05)

    assert outcome.token_ids == {0: said(0, 500)}
    assert outcome.num_deltas < 250
    assert len(outcome.finishes) == 1


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (RefusalCode.CONTEXT_LENGTH_EXCEEDED, "context_length_exceeded"),
        (RefusalCode.INPUT_INVALID, "internal_error"),
        (RefusalCode.DUPLICATE_REQUEST_ID, "duplicate_request_id"),
        (RefusalCode.OVERLOADED, "overloaded"),
        (RefusalCode.RATE_LIMITED, "rate_limited"),
        (RefusalCode.DEADLINE_UNREACHABLE, "deadline_unreachable"),
        (RefusalCode.DRAINING, "engine_restarting"),
        (RefusalCode.OUT_OF_MEMORY, "gpu_out_of_memory"),
        (RefusalCode.GRAMMAR_INVALID, "schema_unsupported"),
        (RefusalCode.GRAMMAR_TOO_COMPLEX, "grammar_too_complex"),
        (RefusalCode.INTERNAL, "internal_error"),
    ],
)
async def test_a_refusal_ends_the_request_with_its_error(engine, refusal: RefusalCode, code: str):
    script = {"fault": "refuse", "refusal": refusal}

    async with connected(engine) as client:
        outcome = await consume(client, request(script=script))

    assert outcome.errors == [code]
    assert outcome.finishes == []


async def test_a_refusal_for_length_tells_both_numbers(engine):
    script = {"fault": "refuse", "refusal": RefusalCode.CONTEXT_LENGTH_EXCEEDED}

    async with connected(engine) as client:
        with pytest.raises(ContextLengthExceeded) as refusal:
            await anext(client.generate(request(script=script)))

    assert (refusal.value.needed, refusal.value.allowed) == (4, 7)


async def test_an_id_in_use_is_refused_and_the_first_request_goes_on(engine):
    async with connected(engine) as client:
        first = client.generate(request(max_tokens=5000))
        await anext(first)

        second = await consume(client, request())

        assert second.errors == ["duplicate_request_id"]
        assert (await anext(first)).token_ids
        client.cancel("r")


async def test_cancel_ends_the_request_here_and_in_the_engine(engine):
    outcome = Outcome()
    async with connected(engine) as client:
        async for delta in client.generate(
            request(num_sequences=2, script={"fault": "stall", "fault_after": 3})
        ):
            outcome.add(delta)
            if all(len(outcome.token_ids.get(index, [])) == 3 for index in (0, 1)):
                client.cancel("r")
                client.cancel("r")
        client.cancel("r")
        await until(lambda: client.stats == Stats(num_running=0))

    assert outcome.finishes == [(0, FinishReason.CANCELLED, 3), (1, FinishReason.CANCELLED, 3)]


@pytest.mark.parametrize("fault", ["none", "refuse"])
async def test_an_id_is_free_only_once_the_engine_has_said_its_last_of_it(engine, fault: str):
    """What it says late, of a request that was cancelled, is never the next one's."""
    async with connected(engine) as client:
        os.kill(engine.process.pid, signal.SIGSTOP)
        first = request(max_tokens=10**6, num_sequences=2, script={"fault": fault})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, client, first)
            await until(lambda: client.num_unfinished == 1)
            client.cancel("r")
        early = await consume(client, request())
        known = client.knows("r")
        os.kill(engine.process.pid, signal.SIGCONT)
        await until(lambda: not client.knows("r"))
        later = await consume(client, request())

    assert known
    assert early.errors == ["duplicate_request_id"]
    assert later.token_ids == {0: said(0, 20)}
    assert later.finishes == [(0, FinishReason.LENGTH, 20)]


async def test_an_id_is_free_when_the_engine_is_lost(null_engine):
    engine = null_engine()
    async with connected(engine) as client:
        os.kill(engine.process.pid, signal.SIGSTOP)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(consume, client, request())
            await until(lambda: client.num_unfinished == 1)
            client.cancel("r")
        engine.kill()
        await until(lambda: not client.knows("r"))
        later = await consume(client, request())

    assert later.token_ids == {0: said(0, 20)}


async def test_a_consumer_that_leaves_cancels_in_the_engine(engine):
    async with connected(engine) as client:
        generated = client.generate(request(max_tokens=10**6))
        await anext(generated)
        await generated.aclose()

        await until(lambda: client.stats == Stats(num_running=0))


@pytest.mark.parametrize("fault", ["die", "garbage", "hang_up", "violate"])
async def test_after_a_loss_requests_go_on_where_they_were(null_engine, fault: str):
    engine = null_engine(step_seconds=0.001)
    culprit = request("culprit", script={"fault": fault, "fault_after": 7})
    neighbours = [request(str(i), max_tokens=40 + i, num_sequences=2) for i in range(5)]

    async with connected(engine) as client:
        outcomes = await all_of(client, [*neighbours, culprit])

    assert [outcome.errors for outcome in outcomes] == [[]] * 6
    assert outcomes[5].token_ids == {0: said(0, 20)}
    for length, outcome in enumerate(outcomes[:5], start=40):
        assert outcome.token_ids == {0: said(0, length), 1: said(1, length)}
        assert sorted(outcome.finishes) == [
            (0, FinishReason.LENGTH, length),
            (1, FinishReason.LENGTH, length),
        ]


async def test_a_sequence_is_admitted_once_by_the_engine_that_had_it_first(null_engine):
    script = {"num_tokens": 2, "num_more": 5, "fault": "die", "fault_after": 4, "fault_lives": 2}

    async with connected(null_engine()) as client:
        outcome = await consume(client, request(num_sequences=3, script=script))
        late = await consume(client, request("late"))

    assert outcome.errors == []
    assert sorted(outcome.admissions) == [(0, 0), (1, 0), (2, 0)]
    assert late.admissions == [(0, 2)]


async def test_a_slow_consumer_misses_no_admission(null_engine):
    async with connected(null_engine()) as client:
        outcome = await consume(client, request(max_tokens=500, num_sequences=2), pause=0.01)

    assert sorted(outcome.admissions) == [(0, 0), (1, 0)]
    assert outcome.num_deltas < 500


async def test_a_sequence_that_had_ended_does_not_run_again(null_engine):
    script = {"num_tokens": 2, "num_more": 5, "fault": "die", "fault_after": 10}

    async with connected(null_engine()) as client:
        outcome = await consume(client, request(num_sequences=4, script=script))

    assert outcome.token_ids == {0: said(0, 2), 1: said(1, 7), 2: said(2, 12), 3: said(3, 17)}
    assert sorted(outcome.finishes) == [
        (index, FinishReason.STOP, 2 + 5 * index) for index in range(4)
    ]


async def test_while_the_engine_is_away_requests_wait_and_those_past_the_bound_are_refused(
    null_engine,
):
    engine = null_engine()
    engine.may_return.clear()
    outcome = Outcome()
    new: list[Outcome] = []

    async with connected(engine, max_waiting=2) as client, anyio.create_task_group() as tasks:

        async def ask(request_id: str) -> None:
            new.append(await consume(client, request(request_id)))

        kept = client.generate(request(max_tokens=3000))
        outcome.add(await anext(kept))
        engine.kill()
        await until(lambda: not client.is_ready)
        tasks.start_soon(ask, "waits")
        await until(lambda: client.num_unfinished == 2)
        await ask("surplus")
        engine.may_return.set()
        async for delta in kept:
            outcome.add(delta)

    assert [answer.errors for answer in new] == [["engine_restarting"], []]
    assert new[1].token_ids == {0: said(0, 20)}
    assert outcome.token_ids == {0: said(0, 3000)}
    assert len(outcome.finishes) == 1


async def test_a_request_that_is_cancelled_while_the_engine_is_away_does_not_return(null_engine):
    engine = null_engine()
    engine.may_return.clear()

    async with connected(engine) as client:
        generated = client.generate(request(script={"fault": "stall", "fault_after": 1}))
        await anext(generated)
        engine.kill()
        await until(lambda: not client.is_ready)
        client.cancel("r")
        finish = (await anext(generated)).finish
        engine.may_return.set()
        await client.wait_ready()
        other = await consume(client, request())

    assert finish is not None
    assert finish.reason == FinishReason.CANCELLED
    assert other.token_ids == {0: said(0, 20)}


async def test_the_request_that_kills_every_engine_fails_and_the_others_do_not(null_engine):
    engine = null_engine(step_seconds=0.001)
    culprit = request("culprit", script={"fault": "die", "fault_after": 3, "fault_lives": 99})
    neighbours = [request(str(i), max_tokens=200) for i in range(3)]

    async with connected(engine) as client:
        outcomes = await all_of(client, [neighbours[0], culprit, *neighbours[1:]])

    assert [outcome.errors for outcome in outcomes] == [[], ["engine_failed"], [], []]
    assert outcomes[1].token_ids == {0: said(0, 3)}
    assert outcomes[3].token_ids == {0: said(0, 200)}


@pytest.mark.parametrize(("num_deaths", "errors"), [(3, []), (4, ["engine_failed"])])
async def test_a_suspect_has_a_second_run_alone(null_engine, num_deaths: int, errors: list[str]):
    """Two deaths make it a suspect; one more may have come from outside, and only two are proof."""
    script = {"fault": "die", "fault_after": 3, "fault_lives": num_deaths}

    async with connected(null_engine(step_seconds=0.001)) as client:
        outcomes = await all_of(client, [request("suspect", script=script), request("other")])

    assert [outcome.errors for outcome in outcomes] == [errors, []]
    assert outcomes[1].token_ids == {0: said(0, 20)}


async def test_suspects_whose_engines_die_of_another_one_are_not_failed(null_engine):
    """They are on board of four lost engines, and of none of them alone."""
    culprit = request("culprit", script={"fault": "die", "fault_after": 1, "fault_lives": 99})
    innocent = [request(str(i), max_tokens=400) for i in range(4)]

    async with connected(null_engine(step_seconds=0.001)) as client:
        outcomes = await all_of(client, [culprit, *innocent])

    assert [outcome.errors for outcome in outcomes] == [["engine_failed"], [], [], [], []]
    assert all(outcome.token_ids == {0: said(0, 400)} for outcome in outcomes[1:])


def test_every_next_engine_is_told_the_time_that_is_left():
    times = iter([100.0, 101.0, 104.0])
    kept = EngineRequest(
        msgspec.structs.replace(request(), deadline_seconds=10.0), lambda: next(times)
    )

    first = kept.message()
    kept.note_loss()
    second = kept.message()

    assert (first.deadline_seconds, first.is_replay) == (9.0, False)
    assert (second.deadline_seconds, second.is_replay) == (6.0, True)


async def test_without_replay_a_loss_fails_what_is_unfinished_at_once(null_engine):
    engine = null_engine()
    engine.may_return.clear()

    async with connected(engine, max_losses=0) as client:
        outcome = await consume(client, request(script={"fault": "die", "fault_after": 3}))

    assert outcome.errors == ["engine_lost"]
    assert outcome.token_ids == {0: said(0, 3)}


async def test_an_engine_that_does_not_return_in_time_fails_what_waits(null_engine):
    engine = null_engine()
    engine.may_return.clear()

    async with connected(engine, max_wait_seconds=0.1) as client:
        outcome = await consume(client, request(script={"fault": "die", "fault_after": 3}))
        later = await consume(client, request("later"))

    assert outcome.errors == ["engine_lost"]
    assert later.errors == ["engine_restarting"]


async def test_what_another_worker_began_is_not_refused_by_a_full_engine(engine):
    begun = msgspec.structs.replace(
        request(script={"fault": "refuse"}), output_prefixes=[said(0, 3)], is_replay=True
    )

    async with connected(engine) as client:
        outcome = await consume(client, begun)

    assert outcome.errors == []
    assert said(0, 3) + outcome.token_ids[0] == said(0, 20)


async def test_a_request_larger_than_what_may_wait_is_sent_alone(engine, monkeypatch):
    monkeypatch.setattr(service.engine.engine_link, "MAX_UNSENT_BYTES", 1000)
    picture = Vision(
        height=32, width=32, pixels=memoryview(bytes(3 * 32 * 32)), content_hash=bytes(32)
    )

    async with connected(engine) as client:
        outcome = await consume(client, request(visions=[picture]))

    assert outcome.errors == []
    assert outcome.token_ids == {0: said(0, 20)}


async def test_a_request_that_no_frame_holds_is_refused_and_harms_no_other(engine):
    with mmap.mmap(-1, MAX_FRAME_BYTES) as pixels, memoryview(pixels) as view:
        picture = Vision(height=32, width=32, pixels=view, content_hash=bytes(32))
        async with connected(engine) as client:
            outcome = await consume(client, request("huge", visions=[picture]))
            other = await consume(client, request())

    assert outcome.errors == ["media_budget_exceeded"]
    assert other.token_ids == {0: said(0, 20)}


async def test_a_shortage_of_threads_costs_one_attempt_to_connect(null_engine, monkeypatch):
    failures = ["can't start new thread"]

    class Scarce(Thread):
        def start(self) -> None:
            if self.name == "engine-writer" and failures:
                raise RuntimeError(failures.pop())
            super().start()

    monkeypatch.setattr(service.engine.engine_link, "Thread", Scarce)
    async with connected(null_engine()) as client:
        outcome = await consume(client, request())

    assert not failures
    assert outcome.token_ids == {0: said(0, 20)}


async def test_a_replay_that_finds_the_new_engine_full_is_sent_again(null_engine):
    engine = null_engine(fault="die", fault_after=3)
    # Admitted by the first engine, refused once as too many by the second.
    script = {"fault": "refuse", "fault_after": 1, "fault_lives": 2}

    async with connected(engine) as client:
        outcomes = await all_of(client, [request("a"), request("b", script=script)])

    assert [outcome.errors for outcome in outcomes] == [[], []]
    assert [outcome.token_ids for outcome in outcomes] == [{0: said(0, 20)}] * 2


async def test_an_engine_of_another_protocol_is_not_used(null_engine):
    engine = null_engine(protocol_version=99)

    async with EngineClient(engine.address, engine.authkey) as client:
        with anyio.move_on_after(1.0) as waited:
            await client.wait_ready()

        assert waited.cancelled_caught
        assert not client.is_ready


async def test_an_engine_with_another_key_is_not_used(engine):
    async with EngineClient(engine.address, b"another key") as client:
        with anyio.move_on_after(1.0) as waited:
            await client.wait_ready()

        assert waited.cancelled_caught
        assert not client.is_ready


async def test_an_engine_that_does_not_read_blocks_nobody_and_is_soon_overloaded(engine):
    picture = Vision(
        height=2048, width=2048, pixels=memoryview(bytes(3 * 2048**2)), content_hash=bytes(32)
    )
    generates = [request(str(i), visions=[picture]) for i in range(12)]
    outcomes: list[Outcome] = []
    early: list[list[str]] = []

    async def run(client: EngineClient, generate: Generate) -> None:
        outcomes.append(await consume(client, generate))

    async with connected(engine) as client, anyio.create_task_group() as tasks:
        os.kill(engine.process.pid, signal.SIGSTOP)
        for generate in generates:
            tasks.start_soon(run, client, generate)
        await until(lambda: bool(outcomes))
        early.extend(outcome.errors for outcome in outcomes)
        os.kill(engine.process.pid, signal.SIGCONT)

    assert set(map(tuple, early)) == {("overloaded",)}
    assert {tuple(outcome.errors) for outcome in outcomes} == {("overloaded",), ()}


async def test_a_fault_of_the_link_fails_every_request_and_readiness(
    engine, monkeypatch: pytest.MonkeyPatch
):
    async with connected(engine) as client:
        generated = client.generate(request(max_tokens=10**6))
        await anext(generated)

        def fail(frame: bytes) -> None:
            raise RuntimeError("a fault of ours")

        monkeypatch.setattr(service.engine.engine_link, "decode_engine_message", fail)
        with pytest.raises(EngineUnavailable) as failure:
            async for _ in generated:
                pass
        with pytest.raises(EngineUnavailable):
            await client.wait_ready()
        later = await consume(client, request("later"))

        assert failure.value.code == "engine_failed"
        assert client.has_failed
        assert not client.is_ready
        assert later.errors == ["engine_failed"]


async def test_closing_fails_what_is_unfinished(engine):
    outcomes: list[Outcome] = []

    async def run(client: EngineClient) -> None:
        outcomes.append(await consume(client, request(max_tokens=10**6)))

    async with (
        anyio.create_task_group() as tasks,
        EngineClient(engine.address, engine.authkey) as client,
    ):
        await client.wait_ready()
        tasks.start_soon(run, client)
        await until(lambda: client.num_unfinished > 0)

    assert outcomes[0].errors == ["engine_stopping"]


async def consume_by_chance(
    client: EngineClient, generate: Generate, outcome: Outcome, chance: random.Random
) -> None:
    """Stay to the end, cancel, or leave: quick or slow."""
    await anyio.sleep(chance.random() * 0.5)
    leaves = chance.choice([None, None, None, "cancels", "closes"])
    generated = client.generate(generate)
    try:
        async for delta in generated:
            outcome.add(delta)
            if leaves == "cancels":
                client.cancel(generate.request_id)
            elif leaves == "closes":
                await generated.aclose()
                outcome.errors.append("closed")
                return
            await anyio.sleep(chance.choice([0, 0, 0.001, 0.02]))
    except ServiceError as error:
        outcome.errors.append(error.code)


def request_by_chance(number: int, chance: random.Random) -> Generate:
    script = {
        "fault": chance.choice([*["none"] * 12, "die", "garbage", "hang_up", "violate", "refuse"]),
        "fault_after": chance.randrange(10),
        "fault_lives": chance.choice([1, 2, 9]),
        "tokens_per_delta": chance.choice([0, 1, 4]),
    }
    return request(
        str(number),
        max_tokens=chance.randrange(1, 40),
        num_sequences=chance.choice([1, 1, 3]),
        script=script,
    )


@pytest.mark.parametrize("seed", range(3))
async def test_every_request_ends_exactly_once_whatever_happens(null_engine, seed: int):
    chance = random.Random(seed)
    generates = [request_by_chance(number, chance) for number in range(40)]
    outcomes = [Outcome() for _ in generates]

    async with (
        connected(null_engine(step_seconds=0.001)) as client,
        anyio.create_task_group() as tasks,
    ):
        for generate, outcome in zip(generates, outcomes, strict=True):
            tasks.start_soon(consume_by_chance, client, generate, outcome, chance)

    for generate, outcome in zip(generates, outcomes, strict=True):
        ended = [index for index, _, _ in outcome.finishes]
        assert len(set(ended)) == len(ended)
        if outcome.errors == ["closed"]:
            continue
        assert len(outcome.errors) == (len(ended) < generate.num_sequences)
        for index, token_ids in outcome.token_ids.items():
            assert token_ids == said(index, len(token_ids))
