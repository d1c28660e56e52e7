from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from policies.interface import Release
from proxy.gate import AGE_S, OVERTAKE_S, Gate, QueueFull, Ticket
from proxy.nodes.graph import Node, State

WORKFLOWS = st.sampled_from("abc")
STEPS = st.sampled_from(["", "x", "y"])
LIMIT = st.none() | st.integers(0, 4)
LIMITS = st.dictionaries(WORKFLOWS, st.integers(0, 3))
SECONDS = st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0])
RULES = st.dictionaries(
    WORKFLOWS, st.builds(Release, SECONDS, SECONDS | st.just(float("inf")), st.sampled_from(["", "step", "prefix"]))
)


def node(run: str, behind: int = 0) -> Node:
    return Node(run, "n", (), State.RUNNING, behind)


class AnyTraffic(RuleBasedStateMachine):
    """A gate under any sequence of calls, beside a model of who waits, until when at most, and who runs."""

    tickets = Bundle("tickets")

    @initialize(capacity=st.integers(0, 5), limit=LIMIT, limits=LIMITS)
    def begin(self, capacity: int, limit: int | None, limits: Mapping[str, int]) -> None:
        self.gate = Gate(capacity, limit, limits)
        self.now = 1000.0
        self.bounds: dict[Ticket, float] = {}  # of those that wait: how long the release rule may hold them
        self.running: list[Ticket] = []
        self.left: list[Ticket] = []

    def has_room(self, workflow: str) -> bool:
        own = sum(ticket.workflow == workflow for ticket in self.running)
        total = self.gate.limit is None or len(self.running) < self.gate.limit
        return total and own < self.gate.limits.get(workflow, own + 1)

    def admitted(self, tickets: list[Ticket]) -> None:
        for ticket in tickets:
            assert self.has_room(ticket.workflow)
            del self.bounds[ticket]
            self.running.append(ticket)
            for other in self.bounds:
                if other.workflow == ticket.workflow and self.now >= self.bounds[other]:
                    assert ticket.arrived <= other.arrived + OVERTAKE_S

    @rule(
        target=tickets,
        workflow=WORKFLOWS,
        step=STEPS,
        prefix=st.integers(0, 2),
        slack_s=st.none() | st.floats(-1, 9),
        place=st.none() | st.builds(node, st.sampled_from(["r1", "r2"]), st.integers(0, 3)),
    )
    def arrive(self, workflow: str, step: str, prefix: int, slack_s: float | None, place: Node | None) -> Ticket:
        ticket = Ticket(workflow, step, prefix, slack_s, node=place)
        full = len(self.bounds) >= self.gate.capacity
        self.bounds[ticket] = self.now + self.gate.release.get(workflow, Release(0)).hold_s
        try:
            released = self.gate.arrive(ticket, self.now)
        except QueueFull:
            assert full and not self.has_room(workflow)
            del self.bounds[ticket]
            self.left.append(ticket)
        else:
            self.admitted(released)
            assert ticket.released == (ticket in released)
        return ticket

    @rule(ticket=tickets)
    def leave(self, ticket: Ticket) -> None:
        was_gone = ticket in self.left
        if ticket in self.running:
            self.running.remove(ticket)
        self.bounds.pop(ticket, None)
        self.left.append(ticket)
        released = self.gate.leave(ticket, self.now)
        assert not (was_gone and released)
        self.admitted(released)

    @rule(limit=LIMIT, limits=LIMITS, release=RULES)
    def set_rules(self, limit: int | None, limits: Mapping[str, int], release: Mapping[str, Release]) -> None:
        self.admitted(self.gate.set_rules(limit, limits, release, self.now))
        for ticket in self.bounds:
            hold_s = release.get(ticket.workflow, Release(0)).hold_s
            self.bounds[ticket] = min(self.bounds[ticket], ticket.arrived + hold_s)

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        until = self.now + seconds
        while (at := self.gate.next_at()) is not None and at <= until:
            self.now = max(self.now, at)
            self.admitted(self.gate.tick(self.now))
            again = self.gate.next_at()
            assert again is None or again > self.now
        self.now = until
        assert self.gate.tick(self.now) == []

    @invariant()
    def counts_agree(self) -> None:
        gate = self.gate
        assert (gate.total, gate.waiting) == (len(self.running), len(self.bounds))
        assert gate.waiting <= gate.capacity
        for workflow in "abc":
            waiting = [ticket for ticket in self.bounds if ticket.workflow == workflow]
            assert gate.in_flight.get(workflow, 0) == sum(t.workflow == workflow for t in self.running)
            assert gate.queued(workflow) == len(waiting) >= gate.held(workflow)
            ages = [self.now - ticket.arrived for ticket in waiting] or [0.0]
            assert gate.ages(workflow, self.now) == pytest.approx((max(ages), sum(ages) / len(ages)))
        assert gate.workflows() == {t.workflow for t in (*self.running, *self.bounds)} | set(gate.limits)

    @invariant()
    def nobody_waits_without_need(self) -> None:
        """Whoever has room is held, and nobody is held for longer than the rules say."""
        for workflow in "abc":
            waiting = [ticket for ticket in self.bounds if ticket.workflow == workflow]
            if self.has_room(workflow):
                assert self.gate.held(workflow) == len(waiting)
            late = [ticket for ticket in waiting if self.now >= self.bounds[ticket]]
            assert self.gate.held(workflow) <= len(waiting) - len(late)

    @invariant()
    def nothing_is_kept_of_who_left(self) -> None:
        gate = self.gate
        held = {ticket for tickets in gate._held.values() for ticket in tickets}
        ready = [ticket for heap in gate._ready.values() for _, ticket in heap]
        assert held.isdisjoint(ready) and len(held) + len(ready) == gate.waiting
        assert held.union(ready) == self.bounds.keys()
        assert {ticket for going in gate._running.values() for ticket in going} <= set(self.running)
        assert (gate.next_at() is None) == (not held)
        assert all([*gate._held.values(), *gate._ready.values(), *gate._running.values(), *gate._waiting.values()])


AnyTraffic.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestAnyTraffic = AnyTraffic.TestCase


EVENTS = st.lists(st.tuples(st.floats(0, 2), st.booleans()), max_size=30)


@given(EVENTS, st.none() | st.integers(1, 3), st.floats(0, 3), st.floats(0, 3))
def test_equals_leave_in_the_order_in_which_they_came(
    events: list[tuple[float, bool]], limit: int | None, hold_s: float, join_s: float
) -> None:
    gate, now, went = Gate(100), 0.0, []
    gate.set_rules(limit, {}, {"a": Release(hold_s, join_s)}, now)
    for seconds, one_leaves in events:
        now += seconds
        went += gate.tick(now)
        running = [ticket for ticket in went if not ticket.gone]
        went += gate.leave(running[0], now) if one_leaves and running else gate.arrive(Ticket("a"), now)
    assert [ticket.number for ticket in went] == list(range(1, len(went) + 1))


@given(EVENTS, LIMITS, st.dictionaries(WORKFLOWS, st.floats(0, 9).map(lambda join_s: Release(0.0, join_s))))
def test_without_patience_nothing_is_ever_held(
    events: list[tuple[float, bool]], limits: Mapping[str, int], release: Mapping[str, Release]
) -> None:
    plain, ruled, now = Gate(100, None, limits), Gate(100), 0.0
    ruled.set_rules(None, limits, release, now)
    tickets: list[tuple[Ticket, Ticket]] = []
    for seconds, one_leaves in events:
        now += seconds
        if one_leaves and tickets:
            one, other = tickets.pop(0)
            sizes = len(plain.leave(one, now)), len(ruled.leave(other, now))
        else:
            one, other = Ticket("a"), Ticket("a")
            tickets.append((one, other))
            sizes = len(plain.arrive(one, now)), len(ruled.arrive(other, now))
        assert sizes[0] == sizes[1] and ruled.next_at() is None
        assert [one.released for one, _ in tickets] == [other.released for _, other in tickets]


# How many -----------------------------------------------------------------------------------------------------------


def test_a_workflow_at_its_limit_does_not_hold_up_the_others() -> None:
    gate = Gate(capacity=10, limits={"search": 1})
    first, second, other = Ticket("search"), Ticket("search"), Ticket("coding")
    assert gate.arrive(first, 0) == [first]
    assert gate.arrive(second, 0) == []
    assert gate.arrive(other, 0) == [other]
    assert gate.leave(first, 1) == [second]


def test_across_workflows_the_one_that_came_first_goes_first() -> None:
    gate = Gate(capacity=10, limit=1)
    running, *waiting = [Ticket(name) for name in ("a", "b", "a", "c")]
    assert gate.arrive(running, 0) == [running]
    assert [gate.arrive(ticket, 0) for ticket in waiting] == [[], [], []]
    assert gate.set_rules(3, {}, {}, 0) == waiting[:2]


def test_narrowing_waits_for_those_in_flight() -> None:
    gate = Gate(capacity=10)
    running = [Ticket("a") for _ in range(3)]
    assert all(gate.arrive(ticket, 0) for ticket in running)
    assert gate.set_rules(1, {}, {}, 0) == []
    waiting = Ticket("a")
    assert not gate.arrive(waiting, 0)
    assert [gate.leave(ticket, 1) for ticket in running] == [[], [], [waiting]]


def test_one_that_was_turned_away_may_leave_like_any_other() -> None:
    gate = Gate(capacity=0, limit=1)
    running, refused = Ticket("a"), Ticket("a")
    assert gate.arrive(running, 0)
    with pytest.raises(QueueFull):
        gate.arrive(refused, 0)
    assert gate.leave(refused, 0) == []
    assert (gate.total, gate.waiting) == (1, 0)


# Who first ----------------------------------------------------------------------------------------------------------


def order(tickets: list[Ticket], release: Mapping[str, Release] | None = None, every_s: float = 0.1) -> list[Ticket]:
    """The order in which tickets that came in this order go one by one."""
    gate = Gate(capacity=10)
    gate.set_rules(1, {}, release or {}, 0)
    going = gate.arrive(Ticket("first", "x", 1), 0)
    for number, ticket in enumerate(tickets):
        gate.arrive(ticket, number * every_s)
    went: list[Ticket] = []
    while going := gate.leave(going[0], 1):
        went += going
    return went


def test_the_one_with_the_least_slack_goes_first() -> None:
    calm, slack, pressed, late = Ticket("a"), Ticket("a", slack_s=3), Ticket("a", slack_s=1), Ticket("a", slack_s=-2)
    assert order([calm, slack, pressed, late]) == [late, pressed, slack, calm]


def test_a_run_that_was_served_for_long_gives_way_to_one_that_was_not() -> None:
    old, new = Ticket("a", attained_s=4), Ticket("a")
    assert order([old, new]) == [new, old]


def test_nobody_is_overtaken_by_one_who_came_much_later() -> None:
    worst = Ticket("a", attained_s=1e9)
    others = [Ticket("a", slack_s=0) for _ in range(8)]
    went = order([worst, *others], every_s=3)
    assert went == [*others[:3], worst, *others[3:]], "10 s of precedence"


def test_in_a_runs_turn_goes_whom_most_others_of_it_wait_for() -> None:
    leaf, chain, root = [Ticket("a", node=node("r1", behind)) for behind in (0, 1, 2)]
    other, plain = Ticket("a", node=node("r2", 9)), Ticket("a")
    assert order([leaf, other, chain, plain, root]) == [root, other, chain, plain, leaf]
    equals = [Ticket("a", node=node("r1", 1)) for _ in range(3)]
    assert order(equals) == equals


def test_what_is_learnt_of_a_graph_counts_for_those_who_wait_already() -> None:
    gate, running = Gate(10, limit=1), Ticket("a")
    gate.arrive(running, 0)
    waiting = [Ticket("a", node=node("r1")) for _ in range(3)]
    for ticket in waiting:
        gate.arrive(ticket, 0)
    assert waiting[2].node is not None
    waiting[2].node.behind = 1
    assert gate.leave(running, 1) == [waiting[2]] and gate.leave(waiting[2], 2) == [waiting[0]]


def test_no_chain_is_long_enough_to_overtake_who_came_long_before() -> None:
    leaf = Ticket("a", node=node("r1"))
    chains = [Ticket("a", node=node("r1", 9)) for _ in range(4)]
    assert order([leaf, *chains], every_s=AGE_S / 2) == [*chains[:2], leaf, *chains[2:]]


@pytest.mark.parametrize("group", ["step", "prefix"])
def test_where_only_some_may_go_they_are_of_one_company(group: str) -> None:
    release = {"a": Release(0, 0, "step" if group == "step" else "prefix")}
    x1, y1, x2, y2 = [Ticket("a", step, prefix) for step, prefix in (("x", 1), ("y", 2), ("x", 1), ("y", 2))]
    assert order([x1, y1, x2, y2], release) == [x1, x2, y1, y2]
    assert order([Ticket("a"), *(tickets := [Ticket("a"), Ticket("a")])], release)[1:] == tickets


# In whose company ---------------------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Callable[..., Gate]:
    def make(served_s: Mapping[str, float] | None = None, **release: Release) -> Gate:
        made = Gate(100)
        made.set_rules(None, {}, release, 0)
        for workflow, seconds in (served_s or {}).items():
            made.expected.learn((workflow, ""), seconds)
        return made

    return make


def test_those_that_are_held_leave_together_when_the_first_is_due(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(3), b=Release(2))
    first, second, third = Ticket("a"), Ticket("b"), Ticket("a")
    assert [one.arrive(ticket, at) for ticket, at in ((first, 10), (second, 10.5), (third, 12))] == [[], [], []]
    assert one.next_at() == 12.5 and one.tick(12.4) == []
    assert one.tick(12.5) == [first, second, third] and one.next_at() is None


def test_a_workflow_without_patience_goes_at_once_and_takes_the_held_along(gate: Callable[..., Gate]) -> None:
    one = gate({"a": 2.0, "b": 2.0}, a=Release(3))
    held, now = Ticket("a"), Ticket("b")
    assert one.arrive(held, 0) == [] and one.arrive(now, 1) == [now, held]


def test_who_would_keep_the_engine_busy_for_longer_is_held(gate: Callable[..., Gate]) -> None:
    one = gate({"a": 2.0, "b": 1.0}, a=Release(3, 0.5), b=Release(3, 0.5))
    first, early, late, short, shorter = [Ticket(name) for name in "aaabb"]
    one.arrive(first, 0)
    assert one.tick(3) == [first], "busy until 5"
    assert one.arrive(early, 3.4) == [early], "until 5.4"
    assert one.arrive(late, 4) == [], "until 6 is too long"
    assert one.arrive(short, 4.2) == [short], "until 5.2 is not"
    assert one.arrive(shorter, 4.8) == [shorter], "nor is 5.8, which makes it 5.8 for the late one: 6.8 at this time"
    assert one.tick(7) == [late]


def test_what_is_dispatched_makes_room_for_longer_ones_that_are_held(gate: Callable[..., Gate]) -> None:
    one = gate({"a": 3.0, "b": 2.0, "c": 1.0}, a=Release(9, 1.2), b=Release(9, 1.2))
    long, longer, short = Ticket("b"), Ticket("a"), Ticket("c")
    assert (one.arrive(longer, 0), one.arrive(long, 0)) == ([], [])
    assert one.arrive(short, 1) == [short, long, longer], "each a second more than the one before"


def test_with_nothing_in_flight_nobody_joins(gate: Callable[..., Gate]) -> None:
    one = gate({"a": 1.0}, a=Release(3, float("inf")))
    first = Ticket("a")
    assert one.arrive(first, 0) == [] and one.tick(3) == [first]
    joins = Ticket("a")
    assert one.arrive(joins, 3.9) == [joins], "with something in flight everybody does"
    one.leave(first, 4)
    one.leave(joins, 5)
    assert one.arrive(Ticket("a"), 6) == []


def test_while_nothing_is_known_all_are_taken_to_be_equal(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(3, 0.5))
    first, joins = Ticket("a"), Ticket("a")
    one.arrive(first, 0)
    one.tick(3)
    assert one.arrive(joins, 3.4) == [joins] and one.arrive(Ticket("a"), 4) == []


def test_how_long_they_take_is_learnt_from_those_that_leave(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(1))
    for number in range(30):
        ticket = Ticket("a", "x" if number % 2 else "y")
        one.arrive(ticket, 10 * number)
        one.tick(10 * number + 1)
        one.leave(ticket, 10 * number + (3 if number % 2 else 5))
    assert one.expected.seconds(("a", "x")) == pytest.approx(2.0)
    assert one.expected.seconds(("a", "y")) == pytest.approx(4.0)
    assert 2.0 < one.expected.seconds(("a", "new")) < 4.0


def test_a_run_that_can_spare_little_time_is_held_no_longer_than_that(gate: Callable[..., Gate]) -> None:
    one = gate({"a": 2.0}, a=Release(3))
    pressed, calm = Ticket("a", slack_s=1.5), Ticket("a", slack_s=50)
    one.arrive(calm, 0)
    assert one.next_at() == 3
    one.arrive(pressed, 1)
    assert one.next_at() == 2.5
    late = Ticket("a", slack_s=-0.1)
    assert one.arrive(late, 2) == [late, pressed, calm], "alike, so the held ones go too"


def test_who_is_held_is_let_go_by_a_new_rule_and_never_held_longer(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(3), b=Release(3))
    first, second = Ticket("a"), Ticket("b")
    one.arrive(first, 0)
    one.arrive(second, 0)
    assert one.set_rules(None, {}, {"a": Release(9), "b": Release(9)}, 1) == [] and one.next_at() == 3
    assert one.set_rules(None, {}, {"a": Release(2), "b": Release(9)}, 1) == [] and one.next_at() == 2
    assert one.set_rules(None, {}, {"b": Release(9)}, 1) == [first, second]


def test_a_full_queue_holds_nobody(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(3))
    one.capacity = 1
    first, second = Ticket("a"), Ticket("a")
    assert one.arrive(first, 0) == []
    assert one.arrive(second, 1) == [first, second]


def test_a_limit_holds_for_those_that_leave_together(gate: Callable[..., Gate]) -> None:
    one = gate(a=Release(1))
    one.set_rules(2, {}, one.release, 0)
    tickets = [Ticket("a") for _ in range(4)]
    for ticket in tickets:
        one.arrive(ticket, 0)
    assert one.tick(1) == tickets[:2]
    assert one.held("a") == 0 and one.queued("a") == 2, "ready, and waiting for room"
    assert one.leave(tickets[0], 2) == [tickets[2]]
