"""The paged KV cache: blocks in use, and free ones that may still be found by what they hold.

As vLLM's block pool: free blocks wait in the order in which they will be taken again, a request's last block first,
and keep their hash until then. What differs is the bookkeeping: a sequence holds only the last block of its chain, and
every block in use holds its parent once. So a head of any length that is in use already is joined at once; a block
always leaves the cache before its parent does; and the longest cached beginning can be found by bisection.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence


class Block:
    """A block with known content (`hash`), or one whose content nobody can ask for (None)."""

    __slots__ = ("hash", "parent", "users")

    def __init__(self, hash: int | None, parent: "Block | None", users: int) -> None:
        self.hash = hash
        self.parent = parent
        self.users = users  # sequences whose chain ends here, and children in use


class KvCache:
    """`capacity` blocks. Those taken are only counted until it is known what is in them (`add`, `release`)."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._untouched = capacity  # never used since the start; they go first
        self._free: OrderedDict[Block, None] = OrderedDict()
        self._cached: dict[int, Block] = {}
        self._twins: dict[int, list[Block]] = {}  # further blocks of the same content, filled at the same time

    @property
    def free(self) -> int:
        """Blocks that can be taken."""
        return self._untouched + len(self._free)

    @property
    def usage(self) -> float:
        """The part of all blocks that sequences hold, 0 to 1."""
        return 1 - self.free / self.capacity

    def longest(self, hashes: Sequence[int], most: int) -> int:
        """How many of the first `most` blocks of a chain are cached, from its beginning on."""
        cached = self._cached
        return bisect_left(range(min(most, len(hashes))), True, key=lambda at: hashes[at] not in cached)

    def find(self, hash: int) -> Block:
        """The cached block of that content. Raises KeyError."""
        return self._cached[hash]

    def idle(self, last: Block | None) -> int:
        """How many free blocks `hold` would put to use."""
        count = 0
        while last is not None and not last.users:
            last, count = last.parent, count + 1
        return count

    def hold(self, last: Block | None) -> None:
        """Use a cached chain, given by its last block."""
        while last is not None:
            last.users += 1
            if last.users > 1:
                return
            del self._free[last]
            last = last.parent

    def take(self, count: int) -> None:
        """Take free blocks, those first that were freed first; what they held is forgotten."""
        if count > self.free:
            raise ValueError(f"{count} blocks wanted, {self.free} are free")
        untouched = min(count, self._untouched)
        self._untouched -= untouched
        for _ in range(count - untouched):
            block, _ = self._free.popitem(last=False)
            if block.hash is not None:
                self._forget(block.hash, block)
                block.parent = None

    def add(self, last: Block | None, hash: int) -> Block:
        """Say what is in a block that was taken: it follows `last`, whose holder now holds the new block instead."""
        block = Block(hash, last, 1)
        self._know(hash, block)
        return block

    def release(self, last: Block | None, taken: int, hashes: Sequence[int] = ()) -> None:
        """Give up a chain: `taken` blocks after its last one, of which the first have the content `hashes`."""
        for _ in range(taken - len(hashes)):
            self._free[Block(None, None, 0)] = None
        held, full = last, []
        for hash in hashes:
            last = Block(hash, last, 0)
            self._know(hash, last)
            full.append(last)
        for block in reversed(full):
            self._free[block] = None
        while held is not None:
            held.users -= 1
            if held.users:
                return
            self._free[held] = None
            held = held.parent

    def _know(self, hash: int, block: Block) -> None:
        if self._cached.setdefault(hash, block) is not block:
            self._twins.setdefault(hash, []).append(block)

    def _forget(self, hash: int, block: Block) -> None:
        twins = self._twins.get(hash)
        if twins is None:
            del self._cached[hash]
            return
        if self._cached[hash] is block:
            self._cached[hash] = twins.pop(0)
        else:
            twins.remove(block)
        if not twins:
            del self._twins[hash]
