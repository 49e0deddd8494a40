"""What is told with tokens, at a sequence's beginning and end, and in the figures."""

import itertools

from inference.frames import decode_worker_message, encode
from inference.protocol import Generate


def test_logprobs_come_with_their_tokens(kit, engine, asked, tokens):
    engine.add(kit.owner, kit.generate(asked, sampling=kit.sampling(6, logprobs=3)))

    answers = kit.run(engine)

    for delta, token_id in zip(answers.deltas["r", 0], tokens[:6], strict=True):
        (logprob,) = delta.logprobs
        assert delta.token_ids == [token_id] == [logprob.token_id]
        assert logprob.top[0] == (token_id, logprob.logprob)
        assert len(logprob.top) == 3


def test_an_end_token_brings_no_logprob(kit, engine, asked, tokens):
    stop = kit.sampling(logprobs=0, stop_token_ids=[tokens[0]])
    engine.add(kit.owner, kit.generate(asked, sampling=stop))

    (delta,) = kit.run(engine).deltas["r", 0]

    assert (delta.token_ids, delta.logprobs) == ([], [])


def test_times_add_up(kit, models):
    """On a clock that moves by one each time it is read, from zero."""
    ticks = itertools.count()
    engine = kit.make_engine(models["dense"], clock=lambda: float(next(ticks)))
    request = kit.case(kit.text(3, 1), kit.picture(2, 2, 1))
    engine.add(kit.owner, kit.generate(request, num_tokens=5))

    answers = kit.run(engine)

    began, ended = answers.admission("r"), answers.finish("r")
    assert began.queue_seconds > 0
    assert began.vision_seconds == 1
    assert began.prefill_seconds > 0
    assert ended.decode_seconds > 0
    last = next(ticks)
    parts = began.queue_seconds + began.vision_seconds + began.prefill_seconds
    assert parts + ended.decode_seconds < last


def test_only_the_first_message_tells_how_a_sequence_began(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked, num_tokens=4))

    deltas = kit.run(engine).deltas["r", 0]

    assert [delta.admission is not None for delta in deltas] == [True, False, False, False]


def test_what_is_cancelled_before_it_ran_never_began(kit, engine, asked):
    engine.add(kit.owner, kit.generate(asked))
    engine.cancel(kit.owner, "r")

    (delta,) = kit.run(engine).deltas["r", 0]

    assert delta.admission is None
    assert (delta.finish.num_output_tokens, delta.finish.decode_seconds) == (0, 0.0)


def test_figures_count_what_happened(kit, models, asked):
    engine = kit.make_engine(models["dense"], max_num_seqs=2)
    for number in range(3):
        engine.add(kit.owner, kit.generate(asked, f"{number}", 5))
    engine.step()
    during = engine.stats()
    kit.run(engine)
    after = engine.stats()

    assert (during.num_running, during.num_waiting) == (2, 1)
    assert during.num_free_blocks < after.num_free_blocks
    assert (after.num_running, after.num_waiting) == (0, 0)
    assert (after.num_prompt_tokens, after.num_output_tokens) == (60, 15)
    assert after.num_steps == 10


def test_a_generate_message_survives_the_wire(kit, engine, cases, expected):
    """As it arrives: pixels are a view of the frame."""
    message = decode_worker_message(encode(kit.generate(cases["video"])))
    assert isinstance(message, Generate)
    engine.add(kit.owner, message)

    assert kit.run(engine).token_ids["r", 0] == expected["dense"]["video"]
