from itertools import product

import pytest

from inference.protocol import Finish, FinishReason, SamplingParams, Vision
from inference.sequence import Owner, Request, Sequence, SequenceState
from inference.spans import VisualLayout, locate_spans

WAITING, PREFILL, DECODE, FINISHED = SequenceState
IMAGE, VIDEO = 150, 151
LAYOUT = VisualLayout(IMAGE, VIDEO, 16, 2, 2)
END = Finish(reason=FinishReason.STOP, num_output_tokens=0)
MOVES = {
    (WAITING, PREFILL),
    (WAITING, FINISHED),
    (PREFILL, DECODE),
    (PREFILL, WAITING),
    (PREFILL, FINISHED),
    (DECODE, WAITING),
    (DECODE, FINISHED),
}


def vision(content, rows=1, columns=4, num_frames=1, *, video=False):
    size = num_frames * rows * columns * 32 * 32 * 3
    return Vision(
        height=rows * 32,
        width=columns * 32,
        num_frames=num_frames,
        video=video,
        pixels=memoryview(bytes(size)),
        content_hash=content * 32,
    )


def sequence(prompt, visions=(), *, output=(), tenant="", block_size=4):
    request = Request(
        owner=Owner(0),
        request_id="r",
        prompt_token_ids=list(prompt),
        sampling=SamplingParams(max_tokens=100),
        visions=list(visions),
        spans=locate_spans(prompt, visions, LAYOUT),
        tenant=tenant,
        rank=0.0,
        arrival_time=0.0,
    )
    request.sequences = [Sequence(request, 0, block_size, list(output))]
    return request.sequences[0]


def keys(*arguments, count=None, **options):
    made = sequence(*arguments, **options)
    return made.block_keys(made.num_tokens // made.block_size if count is None else count)


@pytest.mark.parametrize(("before", "after"), list(product(SequenceState, repeat=2)))
def test_only_the_moves_of_the_table_are_possible(before, after):
    moved = sequence([1])
    moved.state = before

    if (before, after) in MOVES:
        moved.move_to(after)
        assert moved.state is after
    else:
        with pytest.raises(RuntimeError, match="is no move"):
            moved.move_to(after)
        assert moved.state is before


def test_a_sequence_ends_once():
    ended = sequence([1])
    ended.end(END)

    assert ended.finish is END
    assert ended.request.is_finished
    with pytest.raises(RuntimeError, match="is no move"):
        ended.end(END)


def test_a_request_is_finished_when_all_its_sequences_are():
    first = sequence([1])
    request = first.request
    second = Sequence(request, 1, 4)
    request.sequences.append(second)

    first.end(END)
    assert not request.is_finished
    second.end(END)

    assert request.is_finished


def test_tokens_run_from_the_prompt_into_the_output():
    made = sequence([1, 2, 3], output=[4, 5])

    spans = [(0, 3), (1, 2), (3, 5), (4, 5), (2, 4), (0, 5), (3, 3)]

    assert [made.token_ids(start, end) for start, end in spans] == [
        [1, 2, 3, 4, 5][start:end] for start, end in spans
    ]
    assert made.num_tokens == 5


def test_blocks_are_counted_whole():
    made = sequence([1], block_size=4)

    assert [made.num_blocks_for(count) for count in (0, 1, 4, 5, 8, 9)] == [0, 1, 1, 2, 2, 3]


def test_equal_prompts_have_equal_keys():
    assert keys(range(12)) == keys(range(12))
    assert len(set(keys(range(12)))) == 3


def test_keys_do_not_depend_on_when_they_are_asked_for():
    made = sequence(range(8))
    early = list(made.block_keys(1))
    made.output_token_ids += [50, 51, 52, 53]

    assert list(made.block_keys(3)) == list(keys([*range(8), 50, 51, 52, 53]))
    assert early == made.block_keys(3)[:1]


def test_a_key_depends_on_all_that_came_before():
    assert keys([9, 1, 2, 3, 4, 5, 6, 7])[1] != keys([0, 1, 2, 3, 4, 5, 6, 7])[1]


def test_tokens_that_read_the_same_in_other_widths_have_other_keys():
    assert keys([1, 0, 0, 0]) != keys([256, 0, 0, 0])
    assert keys([1, 2, 3, 4]) != keys([4, 3, 2, 1])


def test_tenants_share_no_key():
    assert not set(keys(range(8), tenant="a")) & set(keys(range(8), tenant="b"))
    assert keys(range(8), tenant="a") == keys(range(8), tenant="a")


def test_a_blocks_key_knows_the_picture_in_it():
    prompt = [1, 2, 3, 4, *[IMAGE] * 4, 5, 6, 7, 8]
    first, second = keys(prompt, [vision(b"a")]), keys(prompt, [vision(b"b")])

    assert first[0] == second[0]  # before the picture
    assert first[1] != second[1]
    assert first[2] != second[2]  # behind it: its keys and values saw it
    assert first == keys(prompt, [vision(b"a")])


def test_a_picture_that_reaches_a_block_by_one_token_is_in_its_key():
    prompt = [1, 2, 3, *[IMAGE] * 4, 5]
    first, second = keys(prompt, [vision(b"a")]), keys(prompt, [vision(b"b")])

    assert first[0] != second[0]


def test_a_picture_that_starts_with_the_next_block_is_not_in_the_key():
    prompt = [1, 2, 3, 4, *[IMAGE] * 4]

    assert keys(prompt, [vision(b"a")])[0] == keys(prompt, [vision(b"b")])[0]


def test_a_key_knows_where_in_the_picture_its_block_lies():
    """Blocks of nothing but placeholders read alike; their features differ."""
    whole = keys([IMAGE] * 12, [vision(b"a", 1, 12)])
    shifted = keys([1, *[IMAGE] * 12, 2, 3, 4], [vision(b"a", 1, 12)])

    assert len({*whole, *shifted}) == 7


def test_two_orders_of_two_pictures_have_different_keys():
    prompt = [IMAGE] * 8
    pair = [vision(b"a"), vision(b"b")]

    assert keys(prompt, pair)[0] != keys(prompt, pair[::-1])[0]


def test_a_videos_blocks_know_their_frame():
    clip = vision(b"a", 1, 4, 4, video=True)
    still = vision(b"a", 1, 4, 2, video=True)
    prompt = [VIDEO] * 8

    assert keys(prompt, [clip])[1] != keys(prompt, [still, still])[1]
