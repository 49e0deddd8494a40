"""Who is let in: bounds by cost, shares, deadlines and quotas, on a clock of the test's."""

import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference.backlog import Ticket
from inference.gate import Gate
from inference.ledger import Ledger, Slab
from inference.protocol import Generate, Limits, RefusalCode, Refused, SamplingParams, Vision
from inference.quota import Quota
from inference.spans import VisualLayout

LAYOUT = VisualLayout(90, 91, patch_size=1, merge_size=1, temporal_patch_size=2)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Door:
    """A gate, its clock, and short ways to come and go."""

    def __init__(self, **limits):
        self.clock = Clock()
        self.is_memory_short = False
        chosen: dict[str, Any] = {
            "block_size": 16,
            "num_blocks": 100,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 100,
            "max_queued_requests": 1000,
            "max_num_encoded_patches": 50,
        }
        self.gate = Gate(
            Limits(**{**chosen, **limits}),
            LAYOUT,
            is_memory_short=lambda: self.is_memory_short,
            clock=self.clock,
        )
        self.num_asked = 0

    def ask(self, caller="", num_tokens=10, num_patches=0, **fields) -> Any:
        """Ask for admission; the ticket, or the refusal."""
        self.num_asked += 1
        visions = [
            Vision(height=1, width=num_patches, pixels=memoryview(b""), content_hash=bytes(32))
        ]
        return self.gate.admit(
            Generate(
                request_id=str(self.num_asked),
                prompt_token_ids=[1] * num_tokens,
                sampling=SamplingParams(max_tokens=5),
                visions=visions if num_patches else [],
                caller=caller,
                **fields,
            )
        )

    def measure(self, seconds_per_token=0.01):
        self.gate.learn_step(
            num_decodes=0, num_prefill_tokens=100, num_rows=2, seconds=100 * seconds_per_token
        )


def code(outcome):
    return outcome.code if isinstance(outcome, Refused) else None


# Bounds


def test_queued_tokens_are_bounded_and_running_ones_are_not():
    door = Door(max_queued_tokens=50)
    first = door.ask(num_tokens=40)
    assert code(door.ask(num_tokens=11)) is RefusalCode.OVERLOADED
    assert isinstance(door.ask(num_tokens=10), Ticket)

    door.gate.begin(first)

    assert isinstance(door.ask(num_tokens=40), Ticket)


def test_queued_patches_are_bounded():
    door = Door(max_queued_patches=100)
    door.ask(num_patches=60)

    assert code(door.ask(num_patches=60)) is RefusalCode.OVERLOADED
    assert isinstance(door.ask(num_patches=40), Ticket)


def test_what_is_over_a_bound_by_itself_waits_alone():
    door = Door(max_queued_tokens=50)

    assert isinstance(door.ask(num_tokens=80), Ticket)
    assert code(door.ask(num_tokens=1)) is RefusalCode.OVERLOADED


def test_predicted_time_is_bounded_once_something_was_measured():
    door = Door(max_queued_seconds=2.0)
    for _ in range(3):
        assert isinstance(door.ask(num_tokens=100), Ticket)

    door.measure(seconds_per_token=0.01)

    refused = door.ask(num_tokens=100)
    assert code(refused) is RefusalCode.OVERLOADED
    assert refused.retry_after_seconds == pytest.approx(1.0)  # three seconds' work, less two


def test_a_refusal_says_how_long_the_surplus_takes():
    door = Door(max_queued_tokens=1000)
    door.measure(seconds_per_token=0.01)
    door.ask(num_tokens=900)

    assert door.ask(num_tokens=600).retry_after_seconds == pytest.approx(5.0)


def test_short_memory_turns_everybody_away():
    door = Door()
    door.is_memory_short = True

    assert code(door.ask()) is RefusalCode.OVERLOADED


def test_a_gate_that_drains_lets_nobody_in():
    door = Door()
    door.gate.drain()

    assert code(door.ask()) is RefusalCode.DRAINING


# Accounts


def test_a_full_queue_makes_room_for_who_has_less_in_it():
    door = Door(max_num_seqs=1, max_queued_requests=9)
    heavy = [door.ask("heavy") for _ in range(10)]
    assert code(door.ask("heavy")) is RefusalCode.OVERLOADED

    assert isinstance(door.ask("light"), Ticket)

    assert [ticket.is_displaced for ticket in heavy] == [False] * 9 + [True]
    assert door.gate.num_displaced == 1
    door.gate.end(heavy[-1])
    assert door.gate.num_displaced == 0


def test_nobody_gets_more_of_a_full_queue_than_the_one_it_displaces():
    door = Door(max_num_seqs=1, max_queued_requests=9)
    for _ in range(10):
        door.ask("heavy")

    let_in = [isinstance(door.ask("light"), Ticket) for _ in range(8)]

    assert let_in == [True] * 5 + [False] * 3


def test_a_heavier_weight_holds_more_of_a_full_queue():
    door = Door(max_num_seqs=1, max_queued_requests=7)
    for _ in range(8):
        door.ask("heavy", quota=Quota(weight=3.0))

    let_in = [isinstance(door.ask("light"), Ticket) for _ in range(4)]

    assert let_in == [True] * 2 + [False] * 2


def test_what_has_begun_is_displaced_no_more():
    door = Door(max_num_seqs=1, max_queued_requests=1)
    tickets = [door.ask("heavy") for _ in range(2)]
    door.ask("light")
    assert tickets[1].is_displaced

    door.gate.begin(tickets[1])

    assert not tickets[1].is_displaced
    assert door.gate.num_displaced == 0


def test_room_that_cannot_be_made_displaces_nobody():
    door = Door(max_queued_tokens=100)
    tickets = [door.ask("heavy", num_tokens=10) for _ in range(10)]

    assert code(door.ask("light", num_tokens=90)) is RefusalCode.OVERLOADED
    assert not any(ticket.is_displaced for ticket in tickets)
    assert door.gate.figures().queued == (10, 100, 0)


# Deadlines


def test_a_deadline_that_cannot_be_met_is_refused_at_once():
    door = Door()
    door.measure(seconds_per_token=0.01)
    door.ask("heavy", num_tokens=1000)

    assert code(door.ask("heavy", num_tokens=100, deadline_seconds=10.5)) is (
        RefusalCode.DEADLINE_UNREACHABLE
    )
    assert isinstance(door.ask("heavy", num_tokens=100, deadline_seconds=17.0), Ticket)


def test_a_deadline_has_room_for_the_answer_too():
    door = Door()
    door.measure()
    door.gate.learn_step(num_decodes=1, num_prefill_tokens=0, num_rows=2, seconds=0.1)
    door.gate.learn_answer(5, is_whole=True)

    assert code(door.ask(deadline_seconds=0.55)) is RefusalCode.DEADLINE_UNREACHABLE
    assert isinstance(door.ask(deadline_seconds=0.65), Ticket)


def test_prompts_that_come_between_the_tokens_count_for_a_deadline():
    door = Door()
    door.measure()
    door.gate.learn_step(num_decodes=1, num_prefill_tokens=0, num_rows=2, seconds=0.1)
    for _ in range(200):
        door.gate.learn_step(num_decodes=1, num_prefill_tokens=100, num_rows=2, seconds=1.0)
    door.gate.learn_answer(5, is_whole=True)
    assert isinstance(door.ask(deadline_seconds=2.0), Ticket)  # nothing is in the way

    door.gate.begin(door.ask())

    assert code(door.ask(deadline_seconds=4.0)) is RefusalCode.DEADLINE_UNREACHABLE
    assert isinstance(door.ask(deadline_seconds=12.0), Ticket)


def test_what_ended_late_makes_the_next_deadlines_unreachable():
    door = Door(max_num_seqs=8)
    door.measure()
    others = [door.ask() for _ in range(7)]
    assert isinstance(door.ask(deadline_seconds=2.0), Ticket)
    for other in others:
        door.gate.begin(other)
    door.clock.now += 20

    for other in others:
        door.gate.end(other)

    assert code(door.ask(deadline_seconds=0.6)) is RefusalCode.DEADLINE_UNREACHABLE
    assert isinstance(door.ask(deadline_seconds=0.6, is_replay=True), Ticket)


def test_fair_turns_count_for_a_deadline():
    """Who has nothing in the queue waits for as much of the others' as its own request is."""
    door = Door()
    door.measure(seconds_per_token=0.01)
    door.ask("heavy", num_tokens=1000)

    assert isinstance(door.ask("light", num_tokens=100, deadline_seconds=3.5), Ticket)
    assert code(door.ask("light", num_tokens=100, deadline_seconds=3.5)) is (
        RefusalCode.DEADLINE_UNREACHABLE
    )


def test_no_deadline_is_refused_on_a_guess():
    door = Door()
    door.ask(num_tokens=10_000)

    assert isinstance(door.ask(deadline_seconds=0.001), Ticket)


# Quotas


def test_requests_at_a_time_are_counted_until_they_end():
    door, quota = Door(), Quota(max_concurrent_requests=2)
    first, _ = door.ask("key", quota=quota), door.ask("key", quota=quota)
    refused = door.ask("key", quota=quota)
    assert (refused.code, refused.quota) == (RefusalCode.RATE_LIMITED, "concurrent_requests")
    assert isinstance(door.ask("other", quota=quota), Ticket)

    door.gate.end(first)

    assert isinstance(door.ask("key", quota=quota), Ticket)


def test_requests_a_minute_come_back_with_time():
    door, quota = Door(), Quota(requests_per_minute=6)
    for _ in range(6):
        door.gate.end(door.ask("key", quota=quota))
    refused = door.ask("key", quota=quota)
    assert (refused.code, refused.quota) == (RefusalCode.RATE_LIMITED, "requests")
    assert refused.retry_after_seconds == pytest.approx(10.0)

    door.clock.now += refused.retry_after_seconds

    assert isinstance(door.ask("key", quota=quota), Ticket)
    assert code(door.ask("key", quota=quota)) is RefusalCode.RATE_LIMITED


def test_tokens_a_minute_are_the_prompts_and_the_answers():
    door, quota = Door(), Quota(tokens_per_minute=600)
    ticket = door.ask("key", num_tokens=100, quota=quota)
    door.gate.begin(ticket)
    door.gate.charge({"key": 450, "unknown": 3})
    door.gate.end(ticket)

    refused = door.ask("key", num_tokens=100, quota=quota)

    assert (refused.code, refused.quota) == (RefusalCode.RATE_LIMITED, "tokens")
    assert refused.retry_after_seconds == pytest.approx(5.0)  # 50 of the 100 are missing


def test_a_prompt_larger_than_a_minutes_tokens_needs_a_full_bucket():
    door, quota = Door(), Quota(tokens_per_minute=60)
    first = door.ask("key", num_tokens=90, quota=quota)
    assert isinstance(first, Ticket)
    door.gate.begin(first)
    door.gate.end(first)
    door.clock.now += 60

    refused = door.ask("key", num_tokens=90, quota=quota)

    assert refused.retry_after_seconds == pytest.approx(30.0)


def test_a_prompt_that_never_ran_costs_no_tokens():
    door, quota = Door(), Quota(tokens_per_minute=100)
    door.gate.end(door.ask("key", num_tokens=100, quota=quota))

    assert isinstance(door.ask("key", num_tokens=100, quota=quota), Ticket)


def test_a_replay_pays_nothing_and_is_over_no_quota():
    door, quota = Door(), Quota(requests_per_minute=1, max_concurrent_requests=1)
    door.ask("key", quota=quota)

    assert isinstance(door.ask("key", quota=quota, is_replay=True), Ticket)


@pytest.mark.parametrize(
    ("quota", "kind"),
    [
        pytest.param(Quota(requests_per_minute=2), "requests", id="requests"),
        pytest.param(Quota(tokens_per_minute=20), "tokens", id="tokens"),
    ],
)
def test_the_next_engine_goes_on_with_what_was_used(quota, kind):
    place = Ledger(1).lease()
    first, second = Door(), Door()
    first.gate.keep_quotas_in(Slab(place))
    for _ in range(2):
        assert isinstance(first.ask("key", quota=quota), Ticket)

    second.gate.keep_quotas_in(Slab(place))
    refused = second.ask("key", quota=quota)
    other = second.ask("other", quota=quota)
    second.clock.now += 30
    later = second.ask("key", quota=quota)

    assert (refused.code, refused.quota) == (RefusalCode.RATE_LIMITED, kind)
    assert refused.retry_after_seconds == pytest.approx(30)
    assert isinstance(other, Ticket)
    assert isinstance(later, Ticket)


def test_a_minute_s_worth_comes_at_once_whatever_the_number():
    """Sums of times are not exact."""
    for per_minute in range(1, 100):
        door = Door()
        door.clock.now = 1_234_567.8
        for _ in range(per_minute):
            door.gate.end(door.ask("key", quota=Quota(requests_per_minute=per_minute)))

        assert code(door.ask("key", quota=Quota(requests_per_minute=per_minute))) is not None
        assert door.gate.figures().num_refused[RefusalCode.RATE_LIMITED] == 1


def test_a_quota_that_changes_holds_from_the_next_request_on():
    door = Door()
    for _ in range(5):
        door.ask("key", quota=Quota(requests_per_minute=600))

    assert isinstance(door.ask("key", quota=Quota(requests_per_minute=2)), Ticket)
    assert isinstance(door.ask("key", quota=Quota(requests_per_minute=2)), Ticket)
    assert code(door.ask("key", quota=Quota(requests_per_minute=2))) is RefusalCode.RATE_LIMITED


def test_without_a_caller_the_tenant_is_the_account():
    door, quota = Door(), Quota(max_concurrent_requests=1)
    door.ask(tenant="a", quota=quota)

    assert isinstance(door.ask(tenant="b", quota=quota), Ticket)
    assert code(door.ask(tenant="a", quota=quota)) is RefusalCode.RATE_LIMITED


# All together


asked = st.fixed_dictionaries(
    {
        "caller": st.sampled_from("abc"),
        "num_tokens": st.integers(1, 60),
        "num_patches": st.integers(0, 30),
        "num_sequences": st.integers(1, 3),
        "deadline_seconds": st.none() | st.floats(0.001, 5.0),
        "is_replay": st.booleans(),
        "quota": st.none()
        | st.builds(
            Quota,
            max_concurrent_requests=st.none() | st.integers(1, 4),
            tokens_per_minute=st.none() | st.floats(50, 500),
            weight=st.sampled_from([0.5, 1.0, 4.0]),
        ),
    }
)


@given(
    st.lists(st.tuples(asked, st.sampled_from(["wait", "begin", "end"])), max_size=60),
    st.booleans(),
)
@settings(deadline=None, max_examples=100)
def test_whatever_happens_the_counts_are_those_of_the_tickets(steps, is_measured):
    """Bounds hold but for what was begun while it was displaced; at the end nothing is left."""
    door = Door(max_queued_requests=6, max_queued_tokens=150, max_queued_patches=60)
    if is_measured:
        door.measure()
    tickets = []
    for fields, then in steps:
        outcome = door.ask(**fields)
        door.clock.now += 0.1
        if isinstance(outcome, Ticket):
            tickets.append(outcome)
        if tickets and then == "begin":
            door.gate.begin(tickets[len(tickets) // 2])
        if tickets and then == "end":
            door.gate.end(tickets[0])
            tickets = [ticket for ticket in tickets if ticket.num_open]
        queued = [t for t in tickets if not (t.has_begun or t.is_displaced)]
        figures = door.gate.figures().queued
        assert figures.num_tokens == sum(len(t.generate.prompt_token_ids) for t in queued)
        assert figures.num_patches == sum(t.num_patches for t in queued)
        assert len(queued) < 2 or figures.num_tokens <= 150
    for ticket in tickets:
        for _ in range(ticket.num_open):
            door.gate.end(ticket)

    assert door.gate.figures().queued == (0, 0, 0)
    assert door.gate._backlog.num_running == 0
    assert not door.gate._backlog._lines
    assert all(account.num_requests == 0 for account in door.gate._accounts.values())


def test_threads_that_ask_together_get_no_more_places_than_there_are():
    door = Door(max_num_seqs=3, max_queued_requests=17)
    let_in = []

    def ask(caller):
        outcomes = [door.ask(caller) for _ in range(50)]
        let_in.extend(o for o in outcomes if isinstance(o, Ticket))

    threads = [threading.Thread(target=ask, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(not ticket.is_displaced for ticket in let_in) == 20
    assert door.gate.figures().num_refused == {RefusalCode.OVERLOADED: 180}
