from collections.abc import Mapping

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from proxy.gate import Gate, QueueFull, Ticket

WORKFLOWS = st.sampled_from("abc")
LIMIT = st.none() | st.integers(0, 4)
LIMITS = st.dictionaries(WORKFLOWS, st.integers(0, 3))


class AnyTraffic(RuleBasedStateMachine):
    """A gate under any sequence of calls, beside a model that only keeps who waits and who runs."""

    tickets = Bundle("tickets")

    @initialize(capacity=st.integers(0, 5), limit=LIMIT, limits=LIMITS)
    def begin(self, capacity: int, limit: int | None, limits: Mapping[str, int]) -> None:
        self.gate = Gate(capacity, limit, limits)
        self.waiting: list[Ticket] = []
        self.running: list[Ticket] = []
        self.left: list[Ticket] = []

    def has_room(self, workflow: str) -> bool:
        own = sum(ticket.workflow == workflow for ticket in self.running)
        total = self.gate.limit is None or len(self.running) < self.gate.limit
        return total and own < self.gate.limits.get(workflow, own + 1)

    def admitted(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            first = next(waiting for waiting in self.waiting if waiting.workflow == ticket.workflow)
            assert ticket is first, "within a workflow: first come, first served"
            assert self.has_room(ticket.workflow)
            self.waiting.remove(ticket)
            self.running.append(ticket)

    @rule(target=tickets, workflow=WORKFLOWS)
    def arrive(self, workflow: str) -> Ticket:
        ticket = Ticket(workflow)
        may_go = self.has_room(workflow) and not any(waiting.workflow == workflow for waiting in self.waiting)
        full = len(self.waiting) >= self.gate.capacity
        try:
            went = self.gate.arrive(ticket)
        except QueueFull:
            assert full and not may_go
            self.left.append(ticket)
        else:
            assert went == may_go and (went or not full)
            (self.running if went else self.waiting).append(ticket)
        return ticket

    @rule(ticket=tickets)
    def leave(self, ticket: Ticket) -> None:
        was_gone = ticket in self.left
        for place in (self.waiting, self.running):
            if ticket in place:
                place.remove(ticket)
                self.left.append(ticket)
        released = self.gate.leave(ticket)
        assert not (was_gone and released)
        self.admitted(released)

    @rule(limit=LIMIT, limits=LIMITS)
    def set_limits(self, limit: int | None, limits: Mapping[str, int]) -> None:
        released = self.gate.set_limits(limit, limits)
        self.admitted(released)

    @invariant()
    def counts_agree(self) -> None:
        gate = self.gate
        assert (gate.total, gate.waiting) == (len(self.running), len(self.waiting))
        assert gate.waiting <= gate.capacity
        for workflow in "abc":
            assert gate.in_flight.get(workflow, 0) == sum(t.workflow == workflow for t in self.running)
            assert gate.queued(workflow) == sum(t.workflow == workflow for t in self.waiting)
        assert gate.workflows() == {t.workflow for t in (*self.running, *self.waiting)} | set(gate.limits)

    @invariant()
    def nobody_waits_without_need(self) -> None:
        assert not any(self.has_room(ticket.workflow) for ticket in self.waiting)

    @invariant()
    def nothing_is_kept_of_who_left(self) -> None:
        assert sum(map(len, self.gate.queues.values())) == len(self.waiting)
        assert set(self.gate.queues) <= {ticket.workflow for ticket in self.waiting}


AnyTraffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase


def test_a_workflow_at_its_limit_does_not_hold_up_the_others() -> None:
    gate = Gate(capacity=10, limits={"search": 1})
    first, second, other = Ticket("search"), Ticket("search"), Ticket("coding")
    assert gate.arrive(first)
    assert not gate.arrive(second)
    assert gate.arrive(other)
    assert gate.leave(first) == [second]


def test_across_workflows_the_one_that_came_first_goes_first() -> None:
    gate = Gate(capacity=10, limit=1)
    running, *waiting = [Ticket(name) for name in ("a", "b", "a", "c")]
    assert gate.arrive(running)
    assert not any(gate.arrive(ticket) for ticket in waiting)
    assert gate.set_limits(3, {}) == waiting[:2]


def test_narrowing_waits_for_those_in_flight() -> None:
    gate = Gate(capacity=10)
    running = [Ticket("a") for _ in range(3)]
    assert all(gate.arrive(ticket) for ticket in running)
    assert gate.set_limits(1, {}) == []
    waiting = Ticket("a")
    assert not gate.arrive(waiting)
    assert [gate.leave(ticket) for ticket in running] == [[], [], [waiting]]


def test_one_that_was_turned_away_may_leave_like_any_other() -> None:
    gate = Gate(capacity=0, limit=1)
    running, refused = Ticket("a"), Ticket("a")
    assert gate.arrive(running)
    with pytest.raises(QueueFull):
        gate.arrive(refused)
    assert gate.leave(refused) == []
    assert (gate.total, gate.waiting) == (1, 0)
