"""Holds calls until the nodes that they name have answered: the graphs of all open runs, on the event loop.

**For an engine that schedules nodes itself** (`schedules_nodes = True` on its adapter, see `proxy.engines.interface`):
where every engine that may serve a call is such a one, the call is not held, and its text is not filled. The relay then
calls `lane.upstream.send_node(call, method, target, headers, body)` in place of `send`, with the same reply, and with
a `NodeCall` (below): the run's key, the call's name, and which nodes its text may name. `placeholders.pieces(text,
call.listed)` cuts a text into strings and `Named` places. The engine's side

- awaits `call.producer(name)` for each node in `call.needs`: the handle that the engine gave it, or its text where it
  was served elsewhere or has answered already;
- calls `call.submitted(handle)` once it has taken the call, so that those which name it go on;
- may race its own waiting against `call.lost()`, which returns when a producer failed after that.

Each raises, or returns, the Refusal that the client is to be told (424, 504, 503): let it pass through the relay. What
became of the call itself, and its text, is told by the relay and `forward`, as for any other engine.
"""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from proxy.client import Header
from proxy.config import Limits
from proxy.energy.receipts import Run
from proxy.energy.records import Outcome
from proxy.nodes.answer import Answer
from proxy.nodes.ask import Ask
from proxy.nodes.graph import MOST_MISSING, Graph, Node, Room, State
from proxy.nodes.placeholders import Listed
from proxy.refusal import Refusal
from proxy.upstream import Answering

FULL_RUNS = 64  # all runs together keep as many bytes of outputs as so many may that keep all they can

_ENDED = {Outcome.ERROR: "was refused by its engine", Outcome.REFUSED: "was refused"}

RunKey = tuple[str, str]  # tenant, run id


@dataclass(slots=True, eq=False)
class Call:
    """One named call that is here. `answer` collects the text of its latest attempt."""

    key: RunKey
    graph: Graph
    node: Node
    listed: Listed
    came: float  # by the loop's clock
    ends: float  # when it may be held no longer
    answer: Answer = field(default_factory=Answer)


class Nodes:
    """All runs' graphs. One owner, one event loop."""

    def __init__(self, limits: Limits) -> None:
        self._room = Room(0)
        self.configure(limits)
        self.draining = False
        self._graphs: dict[RunKey, Graph] = {}
        self._keeping: dict[Graph, None] = {}  # those with outputs, in the order in which each got its last
        self._waiting: dict[Node, list[asyncio.Future[None]]] = {}
        self.held = 0

    def configure(self, limits: Limits) -> None:
        """Take other limits: for calls, and runs, that come from now on."""
        self.limits = limits
        self._room.most_bytes = FULL_RUNS * limits.node_bytes

    def enter(self, run: Run, asked: Ask, ends: float, holds: bool = True) -> Call:
        """A named call of a run came, which ends at `ends` (by the loop's clock) in any case.

        Raises Refusal: for a name that is taken (409), a cycle (400), too many that are held (429), and while the
        gateway drains for what needs a call that is not here (503). Else `leave` must follow.
        """
        limits, key = self.limits, (run.tenant, run.run)
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = Graph(run.uid, Room(limits.node_bytes), self._room)
        if self.held >= limits.nodes_held and graph.is_to_wait(asked.needs, holds):
            message = f"{self.held} calls wait for nodes already (limits.nodes_held)"
            raise Refusal(429, message, "too_many_held", retry_after_s=1)
        if graph.missing + len(asked.needs) > MOST_MISSING:
            message = f"calls of this run wait for {graph.missing} outputs already, and for {MOST_MISSING} at most"
            raise Refusal(429, message, "too_many_held", retry_after_s=1)
        node, changed = graph.arrive(asked.name, tuple(asked.needs), holds)
        self._tell(changed)
        if self.draining:
            self._tell(graph.drain())
        now = asyncio.get_running_loop().time()
        return Call(key, graph, node, asked.listed, now, min(ends, now + limits.node_seconds))

    async def inputs(self, call: Call) -> dict[str, str]:
        """Wait for the outputs that a call names. Raises Refusal: 424 where one will never be, 504 where it is late."""
        node = call.node
        if node.state is State.HELD:
            self.held += 1
            try:
                while node.state is State.HELD:
                    await self.output(call)
            finally:
                self.held -= 1
        if node.refusal is not None:
            raise node.refusal
        return node.inputs

    def leave(self, call: Call, code: int, outcome: Outcome) -> None:
        """A call is over, with this status for its client; those that wait for it go on, or never will."""
        if outcome is Outcome.OK:
            text = call.answer.text
            if text:
                self._make_room(call.graph, len(text.encode()))
            self._tell(call.graph.done(call.node, text))
        elif outcome is Outcome.CANCELLED:
            self._tell(call.graph.fail(call.node, "was cancelled: its client left"))
        else:
            what = "failed in its stream" if code < 400 else f"{_ENDED.get(outcome, 'failed')} ({code})"
            self._tell(call.graph.fail(call.node, what))

    def refuse(self, key: RunKey, name: str, code: int) -> None:
        """A named call was refused before it could enter: whoever waits for it need wait no longer."""
        graph = self._graphs.get(key)
        if graph is not None and graph.get(name) is None:
            node, changed = graph.arrive(name, ())
            self._tell([*changed, *graph.fail(node, f"was refused ({code})")])

    def close(self, run: Run) -> None:
        """The run takes no more calls: its outputs are kept no longer."""
        if (graph := self._graphs.pop((run.tenant, run.run), None)) is not None:
            self._drop(graph)

    def drain(self) -> None:
        """No more calls come: those that wait for one which is not here are told so."""
        self.draining = True
        for graph in self._graphs.values():
            self._tell(graph.drain())

    def submit(self, call: Call, handle: Any) -> None:
        self._tell(call.graph.submit(call.node, handle))

    async def output(self, call: Call) -> None:
        """Wait until something changed for a call; from `call.ends` on that is that it waits no longer."""
        try:
            # Not wait_for: on Python 3.11 it loses the cancellation of a client that leaves as the last answer comes.
            async with asyncio.timeout_at(call.ends):
                await self.change(call)
        except TimeoutError:
            self._tell(call.graph.expire(call.node, asyncio.get_running_loop().time() - call.came))

    async def change(self, call: Call) -> None:
        """Wait until something changed for a call, however long that takes."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(call.node, [])
        waiting.append(future)
        try:
            await future
        finally:
            waiting.remove(future)
            if not waiting:
                del self._waiting[call.node]

    def _make_room(self, graph: Graph, size: int) -> None:
        """Drop the outputs of the runs that were quiet for longest, as far as that is needed for so many bytes."""
        self._keeping.pop(graph, None)
        over = self._room.kept_bytes + size - self._room.most_bytes
        quiet: list[Graph] = []
        for other in self._keeping if over > 0 else ():
            if other.is_idle:
                quiet.append(other)
                over -= other.room.kept_bytes
                if over <= 0:
                    break
        for other in quiet:
            self._drop(other)
        self._keeping[graph] = None

    def _drop(self, graph: Graph) -> None:
        self._keeping.pop(graph, None)
        graph.drop_outputs()

    def _tell(self, changed: Iterable[Node]) -> None:
        for node in changed:
            for future in self._waiting.get(node, ()):
                if not future.done():
                    future.set_result(None)


class Producer(NamedTuple):
    """A node that another one names: what its engine calls it, or else its text."""

    handle: Any
    text: str | None


@dataclass(frozen=True, slots=True)
class NodeCall:
    """A named call, as an engine that schedules nodes itself is given it (see this module's own words)."""

    nodes: Nodes
    call: Call

    @property
    def run(self) -> RunKey:
        """Tenant and run id."""
        return self.call.key

    @property
    def name(self) -> str:
        return self.call.node.name

    @property
    def needs(self) -> tuple[str, ...]:
        """The nodes that its text names, in the order in which it first does."""
        return self.call.node.needs

    @property
    def listed(self) -> Listed:
        """The nodes that its text may name, for `placeholders.pieces`; None: any."""
        return self.call.listed

    def submitted(self, handle: Any) -> None:
        """The engine has taken the call, and those that name it may have `handle`, which must not be None."""
        self.nodes.submit(self.call, handle)

    def withdrawn(self) -> None:
        """That attempt failed: who names the call waits for its next handle, or its text."""
        self.nodes.submit(self.call, None)

    async def producer(self, name: str, knows: Callable[[Any], bool] = lambda _: True) -> Producer:
        """Wait until a node that the text names was taken by its engine, or has answered. Raises Refusal.

        A handle that the caller does not know, being another engine's, is passed over: then it gets the text.
        """
        node = self.call.node
        while True:
            if node.refusal is not None:
                raise node.refusal
            if (text := node.inputs.get(name)) is not None:
                return Producer(None, text)
            producer = self.call.graph.get(name)
            if producer is not None and producer.handle is not None and knows(producer.handle):
                return Producer(producer.handle, None)
            await self.nodes.output(self.call)

    async def taken(self) -> None:
        """Wait until all that the text names were taken by their engine, or have answered. Raises Refusal."""
        self.nodes.held += 1
        try:
            for name in self.needs:
                await self.producer(name)
        finally:
            self.nodes.held -= 1

    async def answered(self) -> None:
        """Wait until all that the text names have answered, however long that takes. Raises Refusal where one never
        will."""
        node = self.call.node
        while node.missing:
            await self.nodes.change(self.call)
        if node.refusal is not None:
            raise node.refusal

    async def lost(self) -> Refusal:
        """Wait until it is known that the call cannot run. Returns then alone: cancel it."""
        node = self.call.node
        while node.refusal is None:
            await self.nodes.change(self.call)
        return node.refusal


class NodeUpstream(Protocol):
    """The connections of an engine that schedules nodes itself."""

    async def send_node(
        self, call: NodeCall, method: bytes, target: bytes, headers: list[Header], body: bytes
    ) -> Answering: ...
