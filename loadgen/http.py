"""The driver over HTTP: a load against any OpenAI endpoint, through a gateway or straight at an engine.

    result = run(load, Target(url="http://127.0.0.1:8080"))

Locust drives the same way, one run at a time (`loadgen/locustfile.py`). Everything is greenlets of one thread; nothing
is patched, but nothing else runs in this thread meanwhile.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from uuid import uuid4

import gevent
from gevent.pool import Group
from gevent.queue import SimpleQueue

from loadgen.arrivals import Closed
from loadgen.client import Answered, Client, Target
from loadgen.collect import Collector, Pulse
from loadgen.gateway import Receipt
from loadgen.record import LoadRecord, Outcome, RequestRecord, Result, RunRecord, of_run, sum_energy
from loadgen.schedule import Load, Schedule, Start
from loadgen.validity import Bounds, punctuality, reasons
from loadgen.workload import Dispatch, Execution, tags

log = logging.getLogger(__name__)

PAUSE_AFTER_FAILURE_S = 1.0  # a target that is down must not be hammered
SETTLE_S = 30.0
LAST = 20_000  # requests, of a load that is not kept whole


@dataclass(slots=True)
class Listeners:
    """Who wants to know as it happens. Joules come seconds after their run."""

    request: Callable[[RequestRecord], None] = lambda _: None
    run: Callable[[RunRecord], None] = lambda _: None
    joules: Callable[[str, float], None] = lambda _workflow, _joules: None


def run(
    load: Load,
    target: Target,
    listeners: Listeners | None = None,
    *,
    sample_s: float = 1.0,
    bounds: Bounds | None = None,
) -> Result:
    """Carry out a load. Raises AnswerError where there is no model to ask, ValueError for a load that never ends."""
    if not load.ends:
        raise ValueError("a load needs an end: give seconds, or runs to every stream")
    drive = Drive(Schedule(load), target, listeners or Listeners())
    drive.begin(sample_s)
    try:
        drive.all_streams()
    except BaseException:  # the user's Ctrl-C among them: nobody waits for joules then
        drive.abandon()
        raise
    return drive.finish(bounds)


@dataclass(slots=True)
class _Running:
    start: Start
    name: str
    workflow: str
    execution: Execution
    requests: list[RequestRecord] = field(default_factory=list)


class Drive:
    """One load under way. `begin`, then runs by `all_streams`, or one at a time by `carry_out`; then `finish`.

    Without `whole` only the last requests and runs are kept, and not their gaps: for loads that go on for days.
    """

    def __init__(self, schedule: Schedule, target: Target, listeners: Listeners, whole: bool = True) -> None:
        self.schedule, self.target = schedule, target
        self.label = uuid4().hex[:12]  # in the ids of its runs, which no other load has
        self.outcomes: Counter[Outcome] = Counter()
        self._listeners = listeners
        self._client = Client(target, self.now)
        self._collector = Collector(self._client.server, self._client.headers, self.now, self._settled)
        self._beside: list[gevent.Greenlet] = []
        self._zero = time.perf_counter()
        self._whole = whole
        self._requests: deque[RequestRecord] = deque(maxlen=None if whole else LAST)
        self._runs: deque[RunRecord] = deque(maxlen=None if whole else LAST)
        self._receipts: dict[str, Mapping[str, Receipt]] = {}
        self._steady_to_s = float("inf")

    def now(self) -> float:
        """Seconds since the load's beginning."""
        return time.perf_counter() - self._zero

    def begin(self, sample_s: float = 1.0, joules: bool = True) -> None:
        """Find out what there is, then set the load's time to 0. Raises AnswerError where there is no model to ask.

        Counters are read every `sample_s`, and without `joules` nobody is asked for them.
        """
        self._client.prepare()
        if joules:
            self._collector.begin()
        self._began_unix_s, self._zero = time.time(), time.perf_counter()
        self._beside = [
            gevent.spawn(self._collector.sampling, sample_s),
            gevent.spawn(self._collector.settling),
        ]
        self._pulse = Pulse()

    def all_streams(self) -> None:
        """Every run of the schedule, to the end of the last."""
        users = Group()
        try:
            for stream, closed in self.schedule.closed():
                for begin_s in closed.begins_s():
                    users.spawn(self.user, stream, begin_s)
            self._open_streams(users)
            users.join()
        finally:
            users.kill()

    def user(self, stream: int, begin_s: float) -> None:
        """One user of a closed stream, from `begin_s` until there is no run left."""
        arrivals = self.schedule.load.streams[stream].arrivals
        think_s = arrivals.think_s if isinstance(arrivals, Closed) else 0.0
        free_s = begin_s
        while True:
            gevent.sleep(max(0.0, free_s - self.now()))
            start = self.schedule.take(stream, free_s)
            if start is None:
                self.runs_out()
                return
            done = self.carry_out(start)
            free_s = done.ended_s + (think_s if done.outcome == "ok" else PAUSE_AFTER_FAILURE_S)

    def runs_out(self) -> None:
        """From now on the load cannot be kept up."""
        self._steady_to_s = min(self._steady_to_s, self.now())

    def _open_streams(self, users: Group) -> None:
        last_s = None
        for start in self.schedule.arrivals():
            last_s = start.at_s
            ready = self._plan(start)  # beforehand, while there is time
            gevent.sleep(max(0.0, start.at_s - self.now()))
            users.spawn(self._carry_out, ready)
        if last_s is not None:
            self._steady_to_s = min(self._steady_to_s, last_s)

    # Runs ------------------------------------------------------------------------------------------------------------

    def carry_out(self, start: Start) -> RunRecord:
        """One run, to its last answer or its first failure; those of its calls that are in flight are dropped then."""
        return self._carry_out(self._plan(start))

    def _plan(self, start: Start) -> _Running:
        plan = self.schedule.plan(start)
        workflow = self.target.run_name or plan.workflow
        name = f"{workflow}-{self.label}-{start.stream}-{start.number}"
        execution = Execution(plan, start.at_s, at_once=self.target.mode == "nodes")
        return _Running(start, name, workflow, execution)

    def _carry_out(self, running: _Running) -> RunRecord:
        execution, calls = running.execution, Group()
        answers: SimpleQueue[tuple[Dispatch, Answered]] = SimpleQueue()
        in_flight = 0
        outcome: Outcome = "cut"
        try:
            while not execution.done:
                ready = execution.take_ready()
                if len(ready) == 1 and not in_flight:  # nothing to wait for beside it
                    dispatch, answered = ready[0], self._call(running, ready[0])
                else:
                    for one in ready:
                        calls.spawn(self._put, answers, running, one)
                    in_flight += len(ready)
                    dispatch, answered = answers.get()
                    in_flight -= 1
                if answered.error is not None:
                    outcome = "failed"
                    break
                execution.answer(dispatch.call.node, answered.text, answered.ended_s)
                if execution.run.quotes(dispatch.call.node):
                    self._client.learn(answered.text)
            else:
                outcome = "ok"
        finally:
            calls.kill()
            done = self._end(running, outcome)
        return done

    def _end(self, running: _Running, outcome: Outcome) -> RunRecord:
        start = running.start
        done = of_run(
            stream=start.stream,
            number=start.number,
            workflow=running.workflow,
            run=running.name,
            intended_s=start.at_s,
            ended_s=max((request.ended_s for request in running.requests), default=self.now()),
            outcome=outcome,
            requests=running.requests,
        )
        self._runs.append(done)
        self.outcomes[outcome] += 1
        self._collector.ended(running.name)
        self._listeners.run(done)
        return done

    def _put(self, answers: "SimpleQueue[tuple[Dispatch, Answered]]", running: _Running, dispatch: Dispatch) -> None:
        answers.put((dispatch, self._call(running, dispatch)))

    def _call(self, running: _Running, dispatch: Dispatch) -> Answered:
        if (pause_s := dispatch.due_s - self.now()) > 0:
            gevent.sleep(pause_s)
        outcome: Outcome = "cut"
        answered = Answered(self.now())
        try:
            headers = tags(running.name, running.workflow, dispatch)
            answered = self._client.ask(dispatch.call, headers, running.execution.outputs)
            outcome = "ok" if answered.error is None else "failed"
        except Exception as error:  # a fault of ours must end the run too, or it would wait for ever
            log.exception("a call of %s failed", running.workflow)
            answered.error, outcome = repr(error), "failed"
        finally:
            answered.ended_s = answered.ended_s or self.now()
            self._record(running, dispatch, answered, outcome)
        return answered

    def _record(self, running: _Running, dispatch: Dispatch, answered: Answered, outcome: Outcome) -> None:
        call, start, usage = dispatch.call, running.start, answered.usage
        record = RequestRecord(
            stream=start.stream,
            number=start.number,
            workflow=running.workflow,
            run=running.name,
            step=call.step,
            node=call.node,
            parents=call.parents,
            after=call.after,
            id=answered.id,
            intended_s=dispatch.due_s,
            started_s=answered.started_s,
            first_s=answered.first_s,
            ended_s=answered.ended_s,
            gaps_s=tuple(answered.gaps_s),
            max_tokens=call.max_tokens,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            output_tokens=usage.output,
            outcome=outcome,
            error=answered.error,
        )
        running.requests.append(record)
        self._requests.append(record if self._whole else replace(record, gaps_s=()))
        self._listeners.request(record)

    # The end ---------------------------------------------------------------------------------------------------------

    def finish(self, bounds: Bounds | None = None) -> Result:
        """Wait for the joules of what was done, and tell all of it. No run may be under way."""
        seconds = self.now()
        lag_s, cpu_share = self._pulse.stop()
        gevent.killall(self._beside)
        self._collector.sample()
        unsettled = self._collector.settle(SETTLE_S)
        requests = tuple(self._with_receipt(request) for request in self._requests)
        by_run: dict[str, list[RequestRecord]] = {}
        for request in requests:
            by_run.setdefault(request.run, []).append(request)
        runs = tuple(
            replace(run, energy=sum_energy(request.energy for request in by_run.get(run.run, ()))) for run in self._runs
        )
        late, warm_up_s = punctuality(requests), self.schedule.load.warm_up_s
        why = reasons(requests, lag_s, cpu_share, bounds)
        notes = [self._client.inexact, self._collector.why_not]
        if unsettled:
            notes.append(f"{unsettled} runs were not settled {SETTLE_S:g} s after the load")
        record = LoadRecord(
            driver="http",
            load=self.schedule.load.describe(),
            began_unix_s=self._began_unix_s,
            seconds=seconds,
            window_s=(warm_up_s, max(warm_up_s, min(self._steady_to_s, seconds))),
            exact_lengths=self._client.exact,
            cache_salt=self.target.cache_salt,
            start_delay_p50_s=late.p50_s,
            start_delay_p99_s=late.p99_s,
            start_delay_max_s=late.max_s,
            lag_p99_s=lag_s,
            cpu_share=cpu_share,
            valid=not why,
            reasons=why,
            facts={
                "label": self.label,
                "model": self._client.model,
                "asked": self.target.manner(),
                "notes": [note for note in notes if note],
            },
        )
        self._client.server.close()
        return Result(record, requests, runs, tuple(self._collector.samples))

    def abandon(self) -> None:
        """Leave everything as it is."""
        self._pulse.stop()
        gevent.killall(self._beside)
        self._client.server.close()

    def _settled(self, run: str, receipts: Mapping[str, Receipt]) -> None:
        if self._whole:
            self._receipts[run] = receipts
        if energy := sum_energy(receipt.energy for receipt in receipts.values()):
            self._listeners.joules(run.partition(f"-{self.label}-")[0], energy.joules)

    def _with_receipt(self, request: RequestRecord) -> RequestRecord:
        receipt = self._receipts.get(request.run, {}).get(request.node)
        return request if receipt is None else replace(request, id=receipt.id, energy=receipt.energy)
