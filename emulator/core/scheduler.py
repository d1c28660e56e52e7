"""What each step computes: continuous batching as vLLM's V1 scheduler does it (`v1/core/sched/scheduler.py`).

Running sequences are served first: one token each for those that decode, the rest of the budget for the prompt that is
only partly computed; then waiting ones are admitted, in order, while sequences, budget and cache allow. When blocks run
out, the sequence that would be admitted last loses its own and waits again. Where a preempted sequence of the priority
policy stands between others, vLLM lets those behind it skip the step; here they do not.

Every decoding sequence makes one token a step, so their progress is one clock. Blocks are counted by phase: a sequence
needs a new one whenever the clock is at its phase, modulo the block size.
"""

from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush

from emulator.core.cache import KvCache
from emulator.core.sequence import Sequence, State
from emulator.core.settings import EngineSettings
from emulator.core.step import StepWork


def chunk_work(start: int, tokens: int) -> StepWork:
    """The work of computing `tokens` tokens of a prompt after the first `start`: each attends to all up to itself."""
    return StepWork(1, tokens, tokens * start + tokens * (tokens + 1) // 2, start + tokens)


@dataclass(slots=True)
class Step:
    """What one step computes: all that decode, and chunks of prompts as (sequence, first token, tokens)."""

    decodes: int
    decode_context: int
    shared: int = 0  # tokens of prefixes in use that further sequences read too
    chunks: list[tuple[Sequence, int, int]] = field(default_factory=list)
    admitted: list[Sequence] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    def work(self) -> StepWork:
        work = StepWork(decode_sequences=self.decodes, decode_context=self.decode_context, decode_shared=self.shared)
        for _, start, tokens in self.chunks:
            work += chunk_work(start, tokens)
        return work


class Scheduler:
    """Queues, budget and blocks. Counters have vLLM's meaning; `iteration_tokens` counts steps by the tokens that
    they finished, without those found in the cache (steps that finish none are not among them, as in
    vllm:iteration_tokens_total)."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self.cache = KvCache(settings.kv_blocks)
        self.max_active_seqs = settings.max_num_seqs  # may be set at any time; what runs is never stopped for it
        self.running: dict[Sequence, None] = {}  # in the order of admission
        self.waiting = 0
        self.clock = 0  # steps so far
        self.prompt_tokens = self.generation_tokens = self.preemptions = 0
        self.prefix_queries = self.prefix_hits = 0
        self.iteration_tokens: Counter[int] = Counter()
        self._queue: list[tuple[tuple[float, ...], Sequence]] = []  # a heap; entries of gone sequences are skipped
        self._decodes = 0
        self._in_cache = 0  # tokens of all decoding sequences
        self._shared_blocks = 0  # blocks of all running sequences, less those blocks that are in use
        self._prefilling: Sequence | None = None  # at most one, and the last admitted: it took the rest of the budget
        self._phases = [0] * settings.block_size
        self._ends: list[tuple[int, tuple[float, ...], Sequence]] = []  # a heap, as the queue
        self._provided = 0  # decoding sequences have their blocks up to this clock

    def add(self, sequence: Sequence) -> None:
        sequence.state = State.WAITING
        self.waiting += 1
        heappush(self._queue, (sequence.rank, sequence))

    def remove(self, sequence: Sequence) -> None:
        """End a sequence, whatever it is doing; its blocks are free, and may be found, from now on."""
        outputs = sequence.outputs(self.clock)
        if sequence.state is State.WAITING:
            self.waiting -= 1
        elif sequence in self.running:
            self._stop(sequence)
        sequence.generated, sequence.state = outputs, State.ENDED

    def schedule(self) -> Step | None:
        """The next step, or None if there is nothing to do.

        To be followed by `complete`, or by `decode` if the step has no chunks: then `steady` such steps are alike.
        """
        step = Step(self._decodes, self._in_cache + self._decodes, self.shared_tokens())
        chunk = self._next_chunk()
        wanted = self._wanted(self.clock) + (self._more_blocks(*chunk) if chunk else 0)
        if wanted > self.cache.free:
            self._make_room(step)
        else:
            self._provide(self.clock + 1 - self._provided)
            if chunk:
                self._compute(step, *chunk)
        if not step.preempted and self.waiting:
            self._admit(step)
        return step if step.decodes or step.chunks else None

    def steady(self) -> int:
        """How many steps of nothing but decoding can follow, if nothing arrives: until one ends or blocks run out."""
        ends = self._ends
        while ends[0][2].ends != ends[0][0]:
            heappop(ends)
        most = ends[0][0] - self.clock
        free, size = self.cache.free, self.settings.block_size
        steps = free // self._decodes * size  # a round of all phases takes a block for each
        if steps < most:
            free -= free // self._decodes * self._decodes
            while steps < most and (wanted := self._wanted(self._provided + steps)) <= free:
                free -= wanted
                steps += 1
        return min(most, steps + self._provided - self.clock)

    def decode(self, steps: int) -> list[Sequence]:
        """Go through `steps` alike steps, at most `steady`. Returns those that now have all their tokens."""
        self._provide(self.clock + steps - self._provided)
        self.iteration_tokens[self._decodes] += steps
        return self._tick(steps)

    def complete(self, step: Step) -> tuple[list[Sequence], list[Sequence]]:
        """Go through a step with chunks. Returns those that got their first token, and those that have all."""
        finished, prompts, computed, generated = self._tick(1), 0, 0, step.decodes
        first = []
        for sequence, start, tokens in step.chunks:
            sequence.computed = start + tokens
            if sequence.computed < sequence.chain.tokens:
                continue
            if sequence is self._prefilling:
                self._prefilling = None
            generated += 1
            if not sequence.generated:
                prompts += sequence.prompt_tokens
                computed += sequence.prompt_tokens - (sequence.cached or 0)
                first.append(sequence)
            if not self._join(sequence):
                finished.append(sequence)
        self.prompt_tokens += prompts
        self.generation_tokens += generated - step.decodes
        if generated:
            self.iteration_tokens[computed + generated] += 1
        return first, finished

    def _tick(self, steps: int) -> list[Sequence]:
        self.clock += steps
        if not self._decodes:
            self._provided = self.clock
            return []
        self._in_cache += self._decodes * steps
        self.generation_tokens += self._decodes * steps
        finished, ends = [], self._ends
        while ends and ends[0][0] <= self.clock:
            at, _, sequence = heappop(ends)
            if sequence.ends == at:
                finished.append(sequence)
        return finished

    def _join(self, sequence: Sequence) -> bool:
        """Begin to decode, with the token that the prefill's last step made; False if that was the only one."""
        sequence.state = State.DECODING
        sequence.joined = self.clock
        self._decodes += 1
        self._in_cache += sequence.computed
        self._phases[(self.clock - sequence.computed) % self.settings.block_size] += 1
        remaining = sequence.limit - sequence.generated - 1
        sequence.ends = self.clock + remaining
        if remaining:
            heappush(self._ends, (sequence.ends, sequence.rank, sequence))
        return remaining > 0

    def _stop(self, sequence: Sequence, ahead: int = 0) -> None:
        """Take a sequence off the running ones and free its blocks, `ahead` of them for the step that is being made."""
        del self.running[sequence]
        computed, size = sequence.in_cache(self.clock), self.settings.block_size
        blocks, free = -(-computed // size) + ahead, self.cache.free
        if sequence.state is State.DECODING:
            self._decodes -= 1
            self._in_cache -= computed
            self._phases[(sequence.joined - sequence.computed) % size] -= 1
            sequence.ends = -1
            hashes = sequence.generated_hashes(self.clock) if self.settings.enable_prefix_caching else ()
            self.cache.release(sequence.last, -(-computed // size) + ahead - sequence.named, hashes)
        else:
            if sequence is self._prefilling:
                self._prefilling = None
            self.cache.release(sequence.last, -(-computed // size) - sequence.named)
        self._shared_blocks -= blocks - (self.cache.free - free)

    def shared_tokens(self) -> int:
        """Of the decoding sequences' context, what others read too; the first reader of a block is not counted."""
        return min(self._shared_blocks * self.settings.block_size, self._in_cache) if self._decodes > 1 else 0

    def _wanted(self, clock: int) -> int:
        """Blocks that decoding sequences need for the step at `clock`, beyond those they have."""
        return self._phases[clock % self.settings.block_size] if clock >= self._provided else 0

    def _provide(self, steps: int) -> None:
        """Take the blocks for the next `steps` steps of what decodes."""
        rounds, rest = divmod(steps, self.settings.block_size)
        first = self._provided % self.settings.block_size
        self.cache.take(rounds * self._decodes + sum((self._phases * 2)[first : first + rest]))
        self._provided += steps

    def _next_chunk(self) -> tuple[Sequence, int, int] | None:
        """What the partly computed prompt gets of the budget."""
        sequence = self._prefilling
        if sequence is None:
            return None
        known, budget = sequence.chain.tokens, self.settings.max_num_batched_tokens - self._decodes
        tokens = min(known - sequence.computed, budget)
        return (sequence, sequence.computed, tokens) if tokens else None

    def _more_blocks(self, sequence: Sequence, start: int, tokens: int) -> int:
        size = self.settings.block_size
        return -(-(start + tokens) // size) - -(-start // size)

    def _compute(self, step: Step, sequence: Sequence, start: int, tokens: int) -> None:
        """Put a chunk into the step: take its blocks; those that it fills may be found from now on, as in vLLM."""
        self.cache.take(self._more_blocks(sequence, start, tokens))
        if self.settings.enable_prefix_caching:
            hashes = sequence.chain.hashes
            for at in range(sequence.named, (start + tokens) // self.settings.block_size):
                sequence.last = self.cache.add(sequence.last, hashes[at])
                sequence.named = at + 1
        step.chunks.append((sequence, start, tokens))

    def _make_room(self, step: Step) -> None:
        """Serve the running ones in turn; where blocks lack, preempt whoever would be admitted last."""
        served: set[Sequence] = set()  # those that got a block for this step
        for sequence in list(self.running):
            while sequence in self.running:
                chunk = self._next_chunk() if sequence is self._prefilling else None
                if chunk:
                    wanted = self._more_blocks(*chunk)
                else:
                    wanted = (
                        sequence.state is State.DECODING
                        and not sequence.in_cache(self.clock) % self.settings.block_size
                    )
                if wanted <= self.cache.free:
                    if chunk:
                        self._compute(step, *chunk)
                    elif wanted:
                        self.cache.take(1)
                        served.add(sequence)
                    break
                self._preempt(max(self.running, key=lambda other: other.rank), served, step)
        self._provided = self.clock + 1
        step.decodes, step.decode_context = self._decodes, self._in_cache + self._decodes
        step.shared = self.shared_tokens()

    def _preempt(self, victim: Sequence, served: set[Sequence], step: Step) -> None:
        outputs = victim.outputs(self.clock)
        self._stop(victim, ahead=victim in served)
        victim.learn(outputs)
        victim.computed = victim.named = 0
        victim.last = None
        self.preemptions += 1
        step.preempted.append(victim)
        self.add(victim)

    def _admit(self, step: Step) -> None:
        settings, cache, size = self.settings, self.cache, self.settings.block_size
        budget = settings.max_num_batched_tokens - step.decodes - sum(tokens for _, _, tokens in step.chunks)
        most = min(settings.max_num_seqs, self.max_active_seqs)
        while self.waiting and budget > 0 and len(self.running) < most:
            sequence = self._queue[0][1]
            if sequence.state is not State.WAITING:
                heappop(self._queue)
                continue
            known, hashes, hits, last = sequence.chain.tokens, sequence.chain.hashes, 0, None
            if settings.enable_prefix_caching:
                hits = cache.longest(hashes, (known - 1) // size)  # the last token is always computed
                last = cache.find(hashes[hits - 1]) if hits else None
            start = hits * size
            tokens = min(known - start, budget)
            must_fit = known if settings.reserve_full_prompt else start + tokens
            blocks = -(-must_fit // size)
            if blocks > cache.free and blocks - hits + cache.idle(last) > cache.free:
                return
            heappop(self._queue)
            self.waiting -= 1
            self._shared_blocks += hits - cache.idle(last)
            cache.hold(last)
            sequence.state, sequence.last, sequence.named, sequence.computed = State.PREFILLING, last, hits, start
            self.running[sequence] = None
            if sequence.cached is None:
                sequence.cached = start
                self.prefix_queries += known
                self.prefix_hits += start
                step.admitted.append(sequence)
            self._compute(step, sequence, start, tokens)
            if start + tokens < known:
                self._prefilling = sequence
            budget -= tokens
