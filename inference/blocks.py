"""The paged KV pool's bookkeeping: who holds which block, and which blocks can be shared.

Knows block numbers and keys, never tensors. A block is held by as many sequences as its count says;
at zero it joins the free ones but keeps its content and key until it is needed (least recently
freed first), so that a later request with the same prefix finds it again. Block 0 is never handed
out: rows of a batch that are padding write there.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

PADDING_BLOCK = 0


class OutOfBlocks(Exception):
    """Fewer blocks are free than were asked for."""


class BlockPool:
    """Hands out blocks 1..num_blocks-1 and finds those whose content is already there."""

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError("a pool needs the padding block and at least one more")
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))

    @property
    def num_usable(self) -> int:
        """Blocks that sequences can hold, in all."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks nobody holds, those with reusable content included."""
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Give `count` blocks to one holder; their former content is forgotten.

        Raises:
            OutOfBlocks: fewer are free; nothing was taken.
        """
        if count > len(self._free):
            raise OutOfBlocks
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self._forget(block)
            self._holders[block] = 1
        return blocks

    def release(self, blocks: Sequence[int]) -> None:
        """One holder gives these back; the last of a prefix becomes reusable memory first."""
        for block in reversed(blocks):
            if self._holders[block] <= 0:
                raise ValueError(f"block {block} is held by nobody")
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the longest run of known keys, from the first on; held by nobody yet."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Add a holder to each of these found blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1

    def num_unheld(self, blocks: Iterable[int]) -> int:
        """How many of these count as free now and would not after `share`."""
        return sum(self._holders[block] == 0 for block in blocks)

    def publish(self, block: int, key: bytes) -> None:
        """Make a full block findable; of two with equal content the first stays the known one."""
        if key not in self._block_of:
            self._forget(block)
            self._key_of[block] = key
            self._block_of[key] = block

    def forget_all(self) -> None:
        """Drop every key: no block's content is reusable from here on."""
        self._block_of.clear()
        self._key_of = [None] * self.num_blocks

    def check_integrity(self, held: Iterable[Sequence[int]]) -> None:
        """Compare the counts with the block tables that exist.

        Raises:
            RuntimeError: a block is lost, held twice by mistake, or free while held.
        """
        counts = [0] * self.num_blocks
        for table in held:
            for block in table:
                counts[block] += 1
        if counts != self._holders:
            raise RuntimeError("block counts differ from the block tables")
        if {block for block in range(1, self.num_blocks) if not counts[block]} != set(self._free):
            raise RuntimeError("free blocks differ from unheld blocks")

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            self._key_of[block] = None
            del self._block_of[key]
