"""The cache against vLLM's bookkeeping done the plain way: every block counted by every request that uses it."""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from emulator.core.cache import Block, KvCache

CHAINS = [[100 * kind + at for at in range(6)] for kind in range(3)]
CHAINS += [[*CHAINS[0][:3], 301, 302, 303]]  # shares three blocks with the first


@dataclass
class PlainCache:
    """Blocks by number, with users, hashes and one queue of free ones (`v1/core/block_pool.py`).

    Of twins, filled at the same time, vLLM finds the older one for every block by itself; here, as in our cache, those
    are found on which the last block was computed.
    """

    capacity: int
    users: list[int] = field(default_factory=list)
    hashes: list[int | None] = field(default_factory=list)
    parents: list[int | None] = field(default_factory=list)
    free: OrderedDict[int, None] = field(default_factory=OrderedDict)
    cached: dict[int, dict[int, None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.users = [0] * self.capacity
        self.hashes = [None] * self.capacity
        self.parents = [None] * self.capacity
        self.free = OrderedDict.fromkeys(range(self.capacity))

    def hit(self, hashes: list[int]) -> list[int]:
        known = list(takewhile(self.cached.__contains__, hashes))
        block = next(iter(self.cached[known[-1]])) if known else None
        blocks: list[int] = []
        while block is not None:
            blocks.append(block)
            block = self.parents[block]
        return blocks[::-1]

    def touch(self, blocks: list[int]) -> None:
        for block in blocks:
            if not self.users[block]:
                del self.free[block]
            self.users[block] += 1

    def take(self) -> int:
        block, _ = self.free.popitem(last=False)
        hash = self.hashes[block]
        if hash is not None:
            del self.cached[hash][block]
            if not self.cached[hash]:
                del self.cached[hash]
        self.hashes[block] = None
        self.users[block] = 1
        return block

    def name(self, blocks: list[int], at: int, hash: int) -> None:
        block = blocks[at]
        self.hashes[block], self.parents[block] = hash, blocks[at - 1] if at else None
        self.cached.setdefault(hash, {})[block] = None

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.users[block] -= 1
            if not self.users[block]:
                self.free[block] = None


@dataclass
class Holder:
    """One request in both caches: the first `named` blocks of its chain are known, `unnamed` more are taken."""

    chain: list[int]
    last: Block | None
    blocks: list[int]
    named: int
    unnamed: int = 0


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["join", "grow", "decode", "leave"]), st.integers(0, 5), st.integers(0, 3)), max_size=60
)


@example(
    actions=[("join", 0, 0), ("join", 0, 0), ("grow", 0, 1), ("grow", 1, 2), ("leave", 0, 0), ("join", 0, 0)],
    capacity=6,
)
@settings(deadline=None)
@given(actions=ACTIONS, capacity=st.integers(6, 20))
def test_it_finds_holds_and_forgets_what_plain_bookkeeping_does(actions: list, capacity: int) -> None:
    cache, plain = KvCache(capacity), PlainCache(capacity)
    holders: list[Holder] = []
    for action, which, how_many in actions:
        if action == "join":
            chain = CHAINS[which % len(CHAINS)]
            hits = cache.longest(chain, 5)
            blocks = plain.hit(chain[:5])
            assert hits == len(blocks)
            last = cache.find(chain[hits - 1]) if hits else None
            free = cache.free
            wanted = cache.idle(last)
            cache.hold(last)
            assert cache.free == free - wanted
            plain.touch(blocks)
            holders.append(Holder(chain, last, blocks, hits))
        elif holders:
            holder = holders[which % len(holders)]
            count = min(how_many, cache.free)
            if action == "grow" and not holder.unnamed:
                for hash in holder.chain[holder.named : holder.named + count]:
                    cache.take(1)
                    holder.last = cache.add(holder.last, hash)
                    holder.blocks.append(plain.take())
                    plain.name(holder.blocks, len(holder.blocks) - 1, hash)
                    holder.named += 1
            elif action == "decode":
                cache.take(count)
                holder.blocks += [plain.take() for _ in range(count)]
                holder.unnamed += count
            elif action == "leave":
                holders.remove(holder)
                full = holder.chain[holder.named :][: max(0, holder.unnamed - 1)]
                cache.release(holder.last, holder.unnamed, full)
                for at, hash in enumerate(full, start=holder.named):
                    plain.name(holder.blocks, at, hash)
                plain.release(holder.blocks)
        assert cache.free == len(plain.free)
        for chain in CHAINS:
            assert cache.longest(chain, 6) == len(plain.hit(chain))
    for holder in holders:
        cache.release(holder.last, holder.unnamed)
    assert cache.free == capacity and cache.usage == 0
    cache.take(capacity)
    assert cache.usage == 1 and not any(cache.longest(chain, 6) for chain in CHAINS)


def test_of_a_freed_chain_the_end_is_taken_first() -> None:
    cache = KvCache(4)
    cache.take(4)
    last = None
    for hash in (1, 2, 3, 4):
        last = cache.add(last, hash)
    cache.release(last, 0)
    for left in (3, 2, 1, 0):
        cache.take(1)
        assert cache.longest([1, 2, 3, 4], 4) == left


def test_no_more_can_be_taken_than_is_free() -> None:
    cache = KvCache(2)
    with pytest.raises(ValueError, match="3 blocks wanted, 2 are free"):
        cache.take(3)
