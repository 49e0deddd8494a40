"""Messages as bytes; of bytes that are none, nothing but a FrameError ever comes."""

import random

import pytest

from inference.frames import (
    FrameError,
    decode_child_message,
    decode_engine_message,
    decode_stop,
    decode_worker_message,
    encode,
)
from inference.protocol import Cancel, Generate, Grammar, SamplingParams, Vision
from inference.quota import Quota

# Pixels take every byte: few of them, so that what is struck is structure.
VISION = Vision(height=32, width=32, pixels=memoryview(bytes(20)), content_hash=bytes(32))
MESSAGES = (
    Generate(
        request_id="r",
        prompt_token_ids=list(range(40)),
        sampling=SamplingParams(
            max_tokens=5, temperature=0.5, logit_bias={3: 1.5}, grammar=Grammar(regex="a+"), seed=3
        ),
        visions=[VISION],
        tenant="t",
        caller="key",
        quota=Quota(tokens_per_minute=5),
        deadline_seconds=1.5,
        output_prefixes=[[1, 2]],
    ),
    Generate(request_id="s", prompt_token_ids=[1], sampling=SamplingParams(max_tokens=1)),
    Cancel(request_id="r"),
)


@pytest.mark.parametrize("message", MESSAGES, ids=["full", "plain", "cancel"])
def test_a_message_is_read_as_it_was_sent(message):
    assert decode_worker_message(encode(message)) == message


def test_a_hundred_thousand_mutilated_frames_are_messages_or_errors():
    rng = random.Random(5)
    frames = [encode(message) for message in MESSAGES]
    others = [decode_engine_message, decode_child_message, decode_stop]
    readers = [decode_worker_message] * 9 + others
    num_read, num_refused = 0, 0
    for number in range(100_000):
        frame = bytearray(rng.choice(frames))
        for _ in range(rng.choice((1, 1, 2, 8))):
            place = rng.randrange(len(frame))
            match rng.randrange(4):
                case 0:
                    frame[place] = rng.randrange(256)
                case 1:
                    frame[place] ^= 1 << rng.randrange(8)
                case 2:
                    del frame[place : place + rng.randrange(1, 4)]
                case _:
                    frame[place:place] = rng.randbytes(rng.randrange(1, 4))
            if not frame:
                break
        try:
            readers[number % len(readers)](bytes(frame))
            num_read += 1
        except FrameError:
            num_refused += 1

    assert min(num_read, num_refused) > 1000
