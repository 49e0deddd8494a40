import pytest

from inference.blocks import PADDING_BLOCK, BlockPool, OutOfBlocks


def test_a_pool_hands_out_every_block_but_the_padding_one():
    pool = BlockPool(5)

    blocks = pool.allocate(4)

    assert sorted(blocks) == [1, 2, 3, 4]
    assert PADDING_BLOCK not in blocks
    assert (pool.num_usable, pool.num_free) == (4, 0)


def test_a_pool_of_nothing_but_padding_is_refused():
    with pytest.raises(ValueError, match="at least one more"):
        BlockPool(1)


def test_asking_for_too_many_takes_none():
    pool = BlockPool(4)

    with pytest.raises(OutOfBlocks):
        pool.allocate(4)

    assert pool.num_free == 3


def test_released_blocks_can_be_allocated_again():
    pool = BlockPool(3)
    blocks = pool.allocate(2)

    pool.release(blocks)

    assert sorted(pool.allocate(2)) == sorted(blocks)


def test_a_block_cannot_be_released_twice():
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.release(blocks)

    with pytest.raises(ValueError, match="held by nobody"):
        pool.release(blocks)


def test_published_blocks_are_found_up_to_the_first_unknown_key():
    pool = BlockPool(5)
    first, second, third = pool.allocate(3)
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.publish(third, b"4")

    assert pool.find([b"1", b"2", b"3", b"4"]) == [first, second]


def test_a_freed_block_is_found_until_it_is_handed_out():
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.publish(first, b"1")
    pool.publish(second, b"2")
    pool.release([first, second])
    assert pool.find([b"1", b"2"]) == [first, second]

    pool.allocate(1)

    assert pool.find([b"1", b"2"]) == [first]  # the end of a prefix goes before its beginning


def test_the_least_recently_freed_is_handed_out_first():
    pool = BlockPool(4)
    first, second, third = pool.allocate(3)

    pool.release([second])
    pool.release([first])
    pool.release([third])

    assert pool.allocate(3) == [second, first, third]


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go():
    pool = BlockPool(3)
    blocks = pool.allocate(1)
    pool.share(blocks)

    pool.release(blocks)
    assert pool.num_free == 1
    pool.release(blocks)

    assert pool.num_free == 2


def test_sharing_a_freed_block_takes_it_from_the_free_ones():
    pool = BlockPool(3)
    block = pool.allocate(1)
    pool.publish(block[0], b"1")
    pool.release(block)
    assert pool.num_unheld(block) == 1

    pool.share(pool.find([b"1"]))

    assert pool.num_free == 1
    assert pool.num_unheld(block) == 0
    assert pool.allocate(1) != block


def test_of_two_blocks_with_one_key_the_first_stays_the_known_one():
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    pool.publish(first, b"1")
    pool.publish(second, b"1")

    pool.release([second])
    pool.allocate(1)  # forgets the second's content, not the key

    assert pool.find([b"1"]) == [first]


def test_a_block_published_anew_loses_its_former_key():
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.publish(block, b"1")

    pool.publish(block, b"2")

    assert pool.find([b"1"]) == []
    assert pool.find([b"2"]) == [block]


def test_after_forget_all_nothing_is_found():
    pool = BlockPool(3)
    (block,) = pool.allocate(1)
    pool.publish(block, b"1")

    pool.forget_all()

    assert pool.find([b"1"]) == []
    pool.publish(block, b"1")
    assert pool.find([b"1"]) == [block]


def test_the_integrity_check_accepts_what_is_true():
    pool = BlockPool(5)
    mine = pool.allocate(2)
    yours = pool.allocate(1)
    pool.share(mine[:1])

    pool.check_integrity([mine, mine[:1] + yours])


@pytest.mark.parametrize(
    "held",
    [
        pytest.param([[1]], id="a-block-is-lost"),
        pytest.param([[1, 2], [2]], id="a-block-has-a-second-holder"),
        pytest.param([[1, 2, 3]], id="a-free-block-is-held"),
    ],
)
def test_the_integrity_check_finds(held):
    pool = BlockPool(5)
    assert pool.allocate(2) == [1, 2]

    with pytest.raises(RuntimeError, match="block"):
        pool.check_integrity(held)


def test_the_integrity_check_finds_a_free_block_that_is_nowhere():
    pool = BlockPool(3)
    pool._free.popitem()

    with pytest.raises(RuntimeError, match="free blocks differ"):
        pool.check_integrity([])
