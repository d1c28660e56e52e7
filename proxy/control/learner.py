"""What requests and runs of each workflow were like in the last minute. Sans-I/O: told when they come and end.

Nothing here is kept for long: a minute, and of that at most the newest few hundred requests of a workflow.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from statistics import fmean, median

WINDOW_S = 60.0
_MOST = 300  # requests, and runs, of a workflow
_ALONE = 20  # so many that had the engines to themselves say what being alone is like
_RATE_S = (5.0, 10.0, 20.0, 40.0, WINDOW_S)
_RATE_ARRIVALS = 30  # the rate is that of the shortest of these spans with so many arrivals in it


@dataclass(frozen=True, slots=True)
class Served:
    """A request that ended. Times are Unix seconds; `prompt_tokens` are those that had to be computed.

    `well` is whether it was answered, so that its times say something of the service.
    """

    received: float
    dispatched: float | None
    first: float | None
    ended: float
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    well: bool = True

    @property
    def wait_s(self) -> float:
        return (self.ended if self.dispatched is None else self.dispatched) - self.received

    @property
    def ttft_s(self) -> float | None:
        return None if self.first is None else self.first - self.received

    @property
    def served_s(self) -> float | None:
        return None if self.dispatched is None else self.ended - self.dispatched

    @property
    def itl_s(self) -> float | None:
        """The mean time between its tokens."""
        if self.first is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.ended - self.first) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Isolated:
    """How long the first token, the next ones and a run take with nobody else there; None where it is not known."""

    ttft_s: float | None = None
    itl_s: float | None = None
    run_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lately:
    """A workflow's last minute. Means, but for the percentiles and `requests_per_s`, which are arrivals."""

    requests_per_s: float = 0.0
    ttft_p95_s: float | None = None
    wait_p95_s: float | None = None
    run_p95_s: float | None = None
    served_s: float | None = None
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    depth: float | None = None


@dataclass(slots=True)
class _Run:
    workflow: str
    opened: float
    quiet_s: float
    live: int = 0
    done: int = 0  # requests that ended one after the other
    ended: float = 0.0
    attained_s: float = 0.0
    alone: bool = True


@dataclass(slots=True)
class _Workflow:
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    requests: deque[Served] = field(default_factory=lambda: deque(maxlen=_MOST))
    runs: deque[tuple[float, float, int]] = field(default_factory=lambda: deque(maxlen=_MOST))  # told, seconds, depth
    alone_ttft_s: list[float] = field(default_factory=list)
    alone_itl_s: list[float] = field(default_factory=list)
    alone_run_s: list[float] = field(default_factory=list)


class Learner:
    """One for all workflows; requests and runs are known by ids, workflows by their labels."""

    def __init__(self, since: float) -> None:
        """`since` is when it begins to be told, in Unix seconds."""
        self._since = since
        self._workflows: dict[str, _Workflow] = {}
        self._runs: dict[str, _Run] = {}
        self._live: dict[str, tuple[str, int, bool]] = {}  # request -> run, place in the run's longest chain, alone
        self._busy: set[str] = set()  # runs with a request here
        self._crowded = -inf  # when two runs were here together, last

    def arrived(self, request: str, run: str, workflow: str, opened: float, quiet_s: float, now: float) -> None:
        """A request came; its run was `opened` then, and is over when nothing of it was here for `quiet_s`."""
        self._of(workflow).arrivals.append(now)  # in order of time, as everything here is told
        known = self._runs.get(run)
        if known is None:
            known = self._runs[run] = _Run(workflow, opened, quiet_s)
        alone = not self._busy or self._busy == {run}
        if not alone:
            self._crowded = now
        self._live[request] = (run, known.done + 1, alone)
        self._busy.add(run)
        known.live += 1

    def follows(self, request: str) -> None:
        """It came before the requests of its run that it waits for, and these are done by now."""
        if (seen := self._live.get(request)) is not None:
            run_id, _, alone = seen
            self._live[request] = run_id, self._runs[run_id].done + 1, alone

    def ended(self, request: str, served: Served, last: bool = False) -> None:
        """It ended, and with it its run if it was the `last` one. One that was never seen to come says nothing."""
        if (seen := self._live.pop(request, None)) is None:
            return
        run_id, place, alone = seen
        run = self._runs[run_id]
        run.live -= 1
        run.done, run.ended = max(run.done, place), served.ended
        run.attained_s += served.served_s or 0.0
        alone = alone and served.received > self._crowded
        run.alone = run.alone and alone and served.well
        if not run.live:
            self._busy.discard(run_id)
        of = self._of(run.workflow)
        if served.well:
            of.requests.append(served)
            if alone:
                _add(of.alone_ttft_s, served.ttft_s)
                _add(of.alone_itl_s, served.itl_s)
        if last and not run.live:
            self._end(run_id, served.ended)

    def tick(self, now: float) -> None:
        """Runs of which nothing came for their quiet time are over."""
        over = [uid for uid, run in self._runs.items() if not run.live and now - run.ended >= run.quiet_s]
        for uid in over:
            self._end(uid, now)

    def workflows(self) -> list[str]:
        return list(self._workflows)

    def lately(self, workflow: str, now: float) -> Lately:
        """A workflow's last minute, as of `now`."""
        of = self._workflows.get(workflow)
        if of is None:
            return Lately()
        requests = self.since(workflow, now - WINDOW_S)
        runs = [(duration_s, depth) for told, duration_s, depth in of.runs if told >= now - WINDOW_S]
        depths = [depth for *_, depth in of.runs]
        return Lately(
            self._rate(of, now),
            ttft_p95_s=p95([s for one in requests if (s := one.ttft_s) is not None]),
            wait_p95_s=p95([one.wait_s for one in requests]),
            run_p95_s=p95([duration_s for duration_s, _ in runs]),
            served_s=_mean(one.served_s for one in requests),
            prompt_tokens=_mean(one.prompt_tokens for one in requests),
            output_tokens=_mean(one.output_tokens for one in requests),
            depth=fmean(depths) if depths else None,
        )

    def since(self, workflow: str, t: float) -> list[Served]:
        """The requests of a workflow that ended well at or after `t`, the newest few hundred of them."""
        of = self._workflows.get(workflow)
        return [one for one in of.requests if one.ended >= t] if of else []

    def runs_since(self, workflow: str, t: float) -> list[float]:
        """How long the runs of a workflow took, in seconds, of which `t` or later it was known that they were over."""
        of = self._workflows.get(workflow)
        return [duration_s for told, duration_s, _ in of.runs if told >= t] if of else []

    def isolated(self, workflow: str) -> Isolated:
        """What the first requests and runs took that had the engines to themselves."""
        of = self._workflows.get(workflow)
        if of is None:
            return Isolated()
        return Isolated(*map(_median, (of.alone_ttft_s, of.alone_itl_s, of.alone_run_s)))

    def attained_s(self, run: str) -> float:
        """For how long requests of this run were served, all added up."""
        known = self._runs.get(run)
        return known.attained_s if known else 0.0

    def slack_s(self, run: str, now: float, objective_s: float, lately: Lately) -> float | None:
        """What a run has left of its objective when the requests still to come take as long as they usually do.

        None for a run that is not here.
        """
        known = self._runs.get(run)
        if known is None:
            return None
        steps_left = max(1.0, (lately.depth or 1.0) - known.done)
        return objective_s - (now - known.opened) - steps_left * (lately.served_s or 0.0)

    def least_slack_s(self, workflow: str, now: float, objective_s: float, lately: Lately) -> float | None:
        """The slack of the most pressed run that has a request here; None without one."""
        here = [uid for uid in self._busy if self._runs[uid].workflow == workflow]
        return min((s for uid in here if (s := self.slack_s(uid, now, objective_s, lately)) is not None), default=None)

    def _of(self, workflow: str) -> _Workflow:
        of = self._workflows.get(workflow)
        if of is None:
            of = self._workflows[workflow] = _Workflow()
        return of

    def _end(self, uid: str, told: float) -> None:
        run = self._runs.pop(uid)
        of, duration_s = self._of(run.workflow), run.ended - run.opened
        of.runs.append((told, duration_s, run.done))
        if run.alone:
            _add(of.alone_run_s, duration_s)

    def _rate(self, of: _Workflow, now: float) -> float:
        arrivals = list(of.arrivals)
        for span_s in _RATE_S:
            count = len(arrivals) - bisect_right(arrivals, now - span_s)
            if count >= _RATE_ARRIVALS or span_s == WINDOW_S:
                return count / max(1.0, min(span_s, now - self._since))
        raise AssertionError("the last span is the window")


def p95(values: Sequence[float]) -> float | None:
    """The smallest value that at least 95 % are not above (nearest rank); None of none."""
    return sorted(values)[ceil(0.95 * len(values)) - 1] if values else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def _add(values: list[float], value: float | None) -> None:
    if value is not None and len(values) < _ALONE:
        values.append(value)
