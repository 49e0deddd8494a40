from hypothesis import given
from hypothesis import strategies as st

from service.http.body import Pieces


@given(st.lists(st.binary(max_size=9000), max_size=12))
def test_pieces_join_to_what_came(pieces):
    joined = Pieces()
    for piece in pieces:
        joined.append(piece)

    assert joined.num_bytes == sum(map(len, pieces))
    assert joined.join() == b"".join(pieces)
    assert joined.join() == b""


def test_many_small_pieces_take_no_more_room_than_their_bytes():
    pieces = Pieces()

    for _ in range(10_000):
        pieces.append(b"ab")

    assert len(pieces._pieces) < 10
    assert pieces.join() == b"ab" * 10_000
