"""The admission queue in front of one engine: when a request runs, and in whose company.

Sans-I/O: requests arrive as tickets, time is passed in, and every call returns the tickets that may go now. A ticket is
first *held*, where a release rule of its workflow says so, and then *ready*: it goes as soon as the limits have room.

All that are held leave together when the first of them is due; and whenever something is dispatched, or arrives,
those leave that would keep the engine busy for hardly longer than it is anyway (`Release.join_s`). With no rule for a
workflow nothing of it is held. Among ready ones whoever came first goes first; a short slack, little service attained
by the run, or the same company as the last one may put a ticket forward, by `AGE_S` seconds each at most. In the turn
of a named call goes the one of its run that has the longest chain of calls behind it, if that came no more than `AGE_S`
later; they change places. So nobody is overtaken by one who came `OVERTAKE_S` later. A workflow at its limit does not
hold up the others.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf

from policies.interface import Release
from proxy.expected import Expected
from proxy.nodes.graph import Node

AGE_S = 5.0
OVERTAKE_S = 5 * AGE_S
NOT_HELD = Release(0.0)

Rank = tuple[float, int]  # who goes first has the lower one
Kind = tuple[str, str]  # workflow and step: what is expected to take equally long


class QueueFull(Exception):
    """The queue has as many tickets as it may hold."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One attempt's place: in the queue, then in flight, then gone.

    `slack_s` is what its run can spare and still meet its objective (None: it has none), `attained_s` how long the run
    was served already, `prefix` a hash of the prompt's beginning (0: not known), `node` the call's place in its run's
    graph. Times are those of the calls, in seconds.
    """

    workflow: str
    step: str = ""
    prefix: int = 0
    slack_s: float | None = None
    attained_s: float = 0.0
    node: Node | None = None
    number: int = 0
    arrived: float = 0.0
    due: float = inf  # when it is held no longer
    released_at: float = 0.0
    released: bool = False
    gone: bool = False

    @property
    def kind(self) -> Kind:
        return self.workflow, self.step

    @property
    def rank(self) -> Rank:
        """Its turn, as it comes."""
        slack_s = AGE_S if self.slack_s is None else min(max(self.slack_s, 0.0), AGE_S)
        return self.arrived + slack_s + min(self.attained_s, AGE_S), self.number


@dataclass(slots=True)
class Gate:
    """Limits count requests: `limit` over all, `limits` per workflow, `capacity` those that may queue; None is none."""

    capacity: int
    limit: int | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    release: Mapping[str, Release] = field(default_factory=dict)
    in_flight: dict[str, int] = field(default_factory=dict)
    total: int = 0  # in flight
    waiting: int = 0
    arrivals: int = 0
    expected: Expected = field(default_factory=Expected)
    _waiting: dict[str, dict[Ticket, None]] = field(default_factory=dict)  # by workflow, as they came
    _held: dict[Kind, dict[Ticket, None]] = field(default_factory=dict)
    _ready: dict[tuple[str, str | int], list[tuple[Rank, Ticket]]] = field(default_factory=dict)  # heaps
    _running: dict[Kind, dict[Ticket, None]] = field(default_factory=dict)  # what went while there were release rules
    _due: float = inf  # of the first that is held
    _company: str | int = ""  # whose company was sought last

    def arrive(self, ticket: Ticket, now: float) -> list[Ticket]:
        """Take a ticket in; returns those that may go now, it or others. Raises QueueFull."""
        self.arrivals += 1
        ticket.number, ticket.arrived = self.arrivals, now
        full = self.waiting >= self.capacity
        if not full and self.release and self._is_to_be_held(ticket, now):
            self._enqueue(ticket)
            self._held.setdefault(ticket.kind, {})[ticket] = None
            self._due = min(self._due, ticket.due)
            return []
        if self._has_room(ticket.workflow):  # then nobody of its workflow is ready and waits
            if not self._held:
                self._dispatch(ticket, now)
                return [ticket]
            self._enqueue(ticket)
            self._make_ready(ticket)
            if ticket.kind in self._held:  # they could go with it, and came before it
                self._release_held([ticket.kind])
            return self._go(now)
        if full:
            ticket.gone = True
            raise QueueFull
        self._enqueue(ticket)
        self._make_ready(ticket)
        return []

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A ticket is done, or gives up waiting; returns those that may go now. Leaving twice changes nothing."""
        if ticket.gone:
            return []
        ticket.gone = True
        if ticket.released:
            self._leave_flight(ticket, now)
            return self._go(now) if self.waiting else []
        self._dequeue(ticket)
        self._forget(ticket)
        return []

    def tick(self, now: float) -> list[Ticket]:
        """Time has passed; returns the tickets that may go now."""
        if now < self._due:
            return []
        self._release_held(list(self._held))
        return self._go(now)

    def next_at(self) -> float | None:
        """When `tick` has something to do, if nothing else happens; None if never."""
        return None if self._due == inf else self._due

    def set_rules(
        self, limit: int | None, limits: Mapping[str, int], release: Mapping[str, Release], now: float
    ) -> list[Ticket]:
        """Change limits and release rules; returns the tickets that may go now.

        A narrower limit waits for those in flight to leave; who is held already is never held longer than was said.
        """
        self.limit, self.limits, self.release = limit, dict(limits), dict(release)
        if not release:
            self._running.clear()
        for kind, tickets in self._held.items():
            hold_s = release.get(kind[0], NOT_HELD).hold_s
            for ticket in tickets:
                ticket.due = min(ticket.due, ticket.arrived + hold_s)
        self._due = self._first_due()
        if now >= self._due:
            self._release_held(list(self._held))
        return self._go(now)

    def queued(self, workflow: str) -> int:
        """Tickets of a workflow that wait, held or ready."""
        return len(self._waiting.get(workflow, ()))

    def held(self, workflow: str) -> int:
        """Tickets of a workflow that wait for company."""
        return sum(len(tickets) for kind, tickets in self._held.items() if kind[0] == workflow)

    def ages(self, workflow: str, now: float) -> tuple[float, float]:
        """Seconds since the oldest ticket of a workflow that waits has arrived, and the mean of them; 0 for none."""
        ages = [now - ticket.arrived for ticket in self._waiting.get(workflow, ())]
        return (max(ages), sum(ages) / len(ages)) if ages else (0.0, 0.0)

    def workflows(self) -> set[str]:
        """The workflows that have a ticket here or a limit."""
        return {*self.in_flight, *self._waiting, *self.limits}

    # When: held tickets

    def _is_to_be_held(self, ticket: Ticket, now: float) -> bool:
        rule = self.release.get(ticket.workflow)
        if rule is None or rule.hold_s <= 0:
            return False
        hold_s = rule.hold_s if ticket.slack_s is None else min(rule.hold_s, ticket.slack_s)
        ticket.due = now + hold_s
        return hold_s > 0 and not self._may_join(ticket.kind, now)

    def _may_join(self, kind: Kind, now: float) -> bool:
        """Whether a request of this kind, going now, would keep the engine busy for hardly longer than expected."""
        if not self.total:
            return False
        seconds, rule = self.expected.seconds, self.release[kind[0]]
        ends = (next(reversed(going)).released_at + seconds(each) for each, going in self._running.items())
        own_s = seconds(kind)
        return now + own_s - max(ends, default=now) <= rule.join_s + rule.join_part * own_s

    def _go(self, now: float) -> list[Ticket]:
        """Dispatch what is ready, and those who are held and may join it, and again who may join these."""
        released = self._admit(now)
        while kinds := [kind for kind in self._held if self._may_join(kind, now)]:
            self._release_held(kinds)
            released += self._admit(now)
        return released

    def _release_held(self, kinds: list[Kind]) -> None:
        for kind in kinds:
            for ticket in self._held.pop(kind):
                self._make_ready(ticket)
        self._due = self._first_due()

    def _first_due(self) -> float:
        return min((ticket.due for tickets in self._held.values() for ticket in tickets), default=inf)

    # How many, and who first: ready tickets

    def _has_room(self, workflow: str) -> bool:
        if self.limit is not None and self.total >= self.limit:
            return False
        own = self.limits.get(workflow)
        return own is None or self.in_flight.get(workflow, 0) < own

    def _admit(self, now: float) -> list[Ticket]:
        released: list[Ticket] = []
        while found := min(self._heads(), default=None):
            bucket = found[2]
            heap = self._ready[bucket]
            ticket = heappop(heap)[1]
            if ticket.node is not None:
                ticket = _first_of_run(ticket, ticket.node, heap)
            if not heap:
                del self._ready[bucket]
            self._dequeue(ticket)
            self._dispatch(ticket, now)
            self._company = bucket[1]
            released.append(ticket)
        return released

    def _heads(self) -> Iterator[tuple[float, int, tuple[str, str | int]]]:
        """The first of each bucket that has room: those of the company that went last are a while ahead."""
        for bucket, heap in self._ready.items():
            if self._has_room(bucket[0]):
                at, number = heap[0][0]
                yield at - AGE_S if bucket[1] and bucket[1] == self._company else at, number, bucket

    def _make_ready(self, ticket: Ticket) -> None:
        heappush(self._ready.setdefault(self._bucket(ticket), []), (ticket.rank, ticket))

    def _bucket(self, ticket: Ticket) -> tuple[str, str | int]:
        group = self.release.get(ticket.workflow, NOT_HELD).group
        return ticket.workflow, (ticket.step if group == "step" else ticket.prefix if group == "prefix" else "")

    def _forget(self, ticket: Ticket) -> None:
        """Who waits no longer is in nobody's way."""
        held = self._held.get(ticket.kind, {})
        if ticket in held:
            del held[ticket]
            if not held:
                del self._held[ticket.kind]
            self._due = self._first_due()
            return
        # By whatever rule it was put there.
        bucket = next(name for name, heap in self._ready.items() if any(ticket is other for _, other in heap))
        rest = [entry for entry in self._ready.pop(bucket) if entry[1] is not ticket]
        if rest:
            heapify(rest)
            self._ready[bucket] = rest

    # Books

    def _enqueue(self, ticket: Ticket) -> None:
        self._waiting.setdefault(ticket.workflow, {})[ticket] = None
        self.waiting += 1

    def _dequeue(self, ticket: Ticket) -> None:
        queue = self._waiting[ticket.workflow]
        del queue[ticket]
        if not queue:
            del self._waiting[ticket.workflow]
        self.waiting -= 1

    def _dispatch(self, ticket: Ticket, now: float) -> None:
        ticket.released, ticket.released_at = True, now
        self.total += 1
        self.in_flight[ticket.workflow] = self.in_flight.get(ticket.workflow, 0) + 1
        if self.release:
            self._running.setdefault(ticket.kind, {})[ticket] = None

    def _leave_flight(self, ticket: Ticket, now: float) -> None:
        self.total -= 1
        self.in_flight[ticket.workflow] -= 1
        if not self.in_flight[ticket.workflow]:
            del self.in_flight[ticket.workflow]
        if self._running and ticket in (going := self._running.get(ticket.kind, {})):
            self.expected.learn(ticket.kind, now - ticket.released_at)
            del going[ticket]
            if not going:
                del self._running[ticket.kind]


def _first_of_run(ticket: Ticket, node: Node, heap: list[tuple[Rank, Ticket]]) -> Ticket:
    """Who of a run goes in its ticket's turn, which is off the heap: who has the longest chain of calls behind it."""
    latest = ticket.arrived + AGE_S
    siblings = (
        (-of.behind, other.rank, place)
        for place, (_, other) in enumerate(heap)
        if (of := other.node) is not None and of.run == node.run and other.arrived <= latest
    )
    *first, place = min(siblings, default=(1, ticket.rank, 0))
    if [-node.behind, ticket.rank] <= first:
        return ticket
    turn, other = heap[place]
    heap[place] = turn, ticket  # they change places: no other run is any worse for it
    return other
