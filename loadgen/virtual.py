"""The driver in virtual time: a load on an emulated GPU host in this process, for sweeps too large to wait for.

    result = run(load, Host(gpu="h200", model="llama-2-7b", in_flight=8))

It repeats bit for bit from the load's seed. All joules are emulated: a model's figures, not a machine's; caps and
clocks are uncalibrated. Texts for which no length is asked count four characters a token, answers have all the tokens
that they may have, and a generator is never late here. Nobody's ledger has these runs: only HTTP loads can be compared
with one.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from heapq import heappop, heappush
from math import inf

from emulator.core.host import HostPower
from emulator.core.machine import Machine
from emulator.core.presets import load_gpu
from emulator.core.prompt import Text, output_of
from emulator.core.request import Finished, Request
from loadgen.arrivals import Closed
from loadgen.prompt import about_tokens
from loadgen.record import Energy, LoadRecord, Outcome, RequestRecord, Result, RunRecord, Sample, of_run
from loadgen.schedule import Load, Schedule, Start
from loadgen.validity import reasons
from loadgen.virtual_energy import Books
from loadgen.virtual_host import Host
from loadgen.workload import Dispatch, Execution

PAUSE_AFTER_FAILURE_S = 1.0  # of a closed user, as over HTTP
CAVEAT = "emulated: a model's figures, not a machine's; power caps and clocks are uncalibrated"


def run(load: Load, host: Host, *, cache_salt: str | None = None, sample_s: float = 1.0) -> Result:
    """Carry out a load. Raises OutOfMemory where the host cannot hold the model (a cell that is infeasible),
    PresetError for a host that there is not, ValueError for a load that never ends.
    """
    if not load.ends:
        raise ValueError("a load in virtual time needs an end: give seconds, or runs to every stream")
    if not sample_s > 0:
        raise ValueError(f"sample_s must be above 0, got {sample_s}")
    return _Driver(load, host, cache_salt, sample_s).result()


@dataclass(slots=True)
class _Running:
    start: Start
    name: str
    execution: Execution
    requests: list[RequestRecord] = field(default_factory=list)
    in_flight: dict[str, Dispatch] = field(default_factory=dict)  # request id -> what was sent
    over: bool = False


class _Driver:
    def __init__(self, load: Load, host: Host, cache_salt: str | None, sample_s: float) -> None:
        preset = load_gpu(host.gpu)
        self._settings, cards = host.engine(preset)
        self._machine = Machine(self._settings, cards)
        self._books = Books(self._machine, cards, HostPower(preset.host))
        self._factors = preset.factors
        self._load, self._host, self._salt, self._sample_s = load, host, cache_salt, sample_s
        self._schedule = Schedule(load)
        self._now = 0.0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []  # a heap
        self._count = 0
        self._sent: dict[str, _Running] = {}  # requests in the engine
        self._places = inf if host.in_flight is None else host.in_flight
        self._queue: deque[tuple[_Running, str]] = deque()  # before the gate
        self._arrivals = self._schedule.arrivals()
        self._last_arrival_s: float | None = None
        self._steady_to_s = inf
        self._open = 0  # runs under way, and arrivals and users to come
        self._requests: list[RequestRecord] = []
        self._runs: list[RunRecord] = []
        self._samples: list[Sample] = []

    def result(self) -> Result:
        self._next_arrival()
        for stream, closed in self._schedule.closed():
            for begin_s in closed.begins_s():
                self._open += 1
                self._at(begin_s, partial(self._user, stream))
        self._at(0.0, self._sample)
        while self._open:
            until = self._timers[0][0] if self._timers else inf
            ended = [event for event in self._machine.run(until) if isinstance(event, Finished)]
            energy = self._books.close(ended)
            for event in ended:
                self._at(event.at, partial(self._ended, event, energy.get(event.request_id)))
            if not ended:
                self._now, _, act = heappop(self._timers)
                act()
        self._machine.advance(self._now)
        self._books.close(())
        self._samples += self._books.samples(self._now)
        why = reasons(self._requests)
        return Result(
            LoadRecord(
                driver="virtual",
                load=self._load.describe(),
                seconds=self._now,
                window_s=(self._load.warm_up_s, max(self._load.warm_up_s, min(self._steady_to_s, self._now))),
                exact_lengths=True,
                cache_salt=self._salt,
                start_delay_p50_s=0.0,
                start_delay_p99_s=0.0,
                start_delay_max_s=0.0,
                valid=not why,
                reasons=why,
                facts={"host": asdict(self._host), "caveat": CAVEAT, "kv_tokens": self._kv_tokens},
            ),
            tuple(self._requests),
            tuple(self._runs),
            tuple(self._samples),
        )

    @property
    def _kv_tokens(self) -> int:
        return self._settings.kv_blocks * self._settings.block_size

    def _at(self, at_s: float, act: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._timers, (at_s, self._count, act))

    def _sample(self) -> None:
        self._machine.advance(self._now)
        self._books.close(())
        self._samples += self._books.samples(self._now)
        self._at(self._now + self._sample_s, self._sample)

    # Runs ------------------------------------------------------------------------------------------------------------

    def _next_arrival(self) -> None:
        start = next(self._arrivals, None)
        if start is None:
            if self._last_arrival_s is not None:
                self._steady_to_s = min(self._steady_to_s, self._last_arrival_s)
            return
        self._open += 1
        self._last_arrival_s = start.at_s
        self._at(start.at_s, partial(self._arrive, start))

    def _arrive(self, start: Start) -> None:
        self._next_arrival()
        self._begin(start)

    def _user(self, stream: int) -> None:
        """A user of a closed stream is free."""
        start = self._schedule.take(stream, self._now)
        if start is None:
            self._steady_to_s = min(self._steady_to_s, self._now)
            self._open -= 1
        else:
            self._begin(start)

    def _begin(self, start: Start) -> None:
        plan = self._schedule.plan(start)
        name = f"{plan.workflow}-{start.stream}-{start.number}"
        self._advance(_Running(start, name, Execution(plan, self._now)))

    def _advance(self, running: _Running) -> None:
        for dispatch in running.execution.take_ready():
            self._at(dispatch.due_s, partial(self._send, running, dispatch))

    def _end(self, running: _Running, outcome: Outcome) -> None:
        running.over = True
        execution, start = running.execution, running.start
        self._runs.append(
            of_run(
                stream=start.stream,
                number=start.number,
                workflow=execution.run.workflow,
                run=running.name,
                intended_s=start.at_s,
                ended_s=self._now,
                outcome=outcome,
                requests=running.requests,
            )
        )
        arrivals = self._load.streams[start.stream].arrivals
        if isinstance(arrivals, Closed):
            pause_s = PAUSE_AFTER_FAILURE_S if outcome == "failed" else arrivals.think_s
            self._at(self._now + pause_s, partial(self._user, start.stream))
        else:
            self._open -= 1

    # Requests --------------------------------------------------------------------------------------------------------

    def _send(self, running: _Running, dispatch: Dispatch) -> None:
        if running.over:
            return
        request_id = f"{running.name}/{dispatch.call.node}"
        running.in_flight[request_id] = dispatch
        if self._places:
            self._places -= 1
            self._submit(running, request_id)
        else:
            self._queue.append((running, request_id))

    def _submit(self, running: _Running, request_id: str) -> None:
        call = running.in_flight[request_id].call
        texts: list[Text] = []
        for piece in call.prompt:
            if piece.answer_of is None:
                texts.append(Text(piece.text, about_tokens(piece)))
            else:
                answered = len(running.execution.outputs[piece.answer_of])
                texts.append(output_of(f"{running.name}/{piece.answer_of}", min(answered, piece.tokens or answered)))
        tokens, most = sum(text.tokens for text in texts), self._settings.max_model_len
        if tokens >= most:  # the engine's server says so, before the engine hears of it
            error = f"the prompt has {tokens} tokens and leaves no room in a context of {most}"
            self._at(self._now + self._factors.request_s, partial(self._refuse, running, request_id, error))
            return
        request = Request(request_id, texts, call.max_tokens, cache_salt=self._salt)
        self._sent[request_id] = running
        self._books.submitted(request_id)
        # The way to the engine, as the preset has it.
        self._machine.submit(request, self._now + self._factors.request_s + self._factors.prompt_token_s * tokens)

    def _ended(self, event: Finished, energy: Energy | None) -> None:
        running = self._sent.pop(event.request_id, None)
        if running is None:  # its run failed meanwhile
            return
        self._let_in()
        dispatch = running.in_flight.pop(event.request_id)
        usage = event.usage
        # What the answer says is nobody's matter here; that it is so long is.
        running.execution.answer(dispatch.call.node, "." * usage.output, self._now)
        counts = (usage.prompt, usage.cached, usage.output)
        self._record(running, dispatch, event.first_token_at, counts, "ok", None, energy)
        if running.execution.done:
            self._end(running, "ok")
        else:
            self._advance(running)

    def _refuse(self, running: _Running, request_id: str, error: str) -> None:
        """One call was refused: its run is over, and what that has in flight is cancelled."""
        self._let_in()
        if running.over:
            return
        running.over = True
        self._record(running, running.in_flight.pop(request_id), None, (None, None, None), "failed", error, None)
        self._books.close(())
        for other, dispatch in running.in_flight.items():
            energy = None
            if self._sent.pop(other, None):
                energy = self._books.leave(other)
                self._machine.cancel(other, self._now)
                self._let_in()
            self._record(running, dispatch, None, (None, None, None), "cut", "its run failed", energy)
        running.in_flight.clear()
        self._end(running, "failed")

    def _let_in(self) -> None:
        """A place at the gate is free."""
        while self._queue:
            running, request_id = self._queue.popleft()
            if not running.over and request_id in running.in_flight:
                self._submit(running, request_id)
                return
        self._places += 1

    def _record(
        self,
        running: _Running,
        dispatch: Dispatch,
        first_s: float | None,
        counts: tuple[int | None, int | None, int | None],
        outcome: Outcome,
        error: str | None,
        energy: Energy | None,
    ) -> None:
        call, start = dispatch.call, running.start
        record = RequestRecord(
            stream=start.stream,
            number=start.number,
            workflow=running.execution.run.workflow,
            run=running.name,
            step=call.step,
            node=call.node,
            parents=call.parents,
            after=call.after,
            intended_s=dispatch.due_s,
            started_s=dispatch.due_s,
            first_s=first_s,
            ended_s=self._now,
            max_tokens=call.max_tokens,
            prompt_tokens=counts[0],
            cached_tokens=counts[1],
            output_tokens=counts[2],
            outcome=outcome,
            error=error,
            energy=energy,
        )
        running.requests.append(record)
        self._requests.append(record)
