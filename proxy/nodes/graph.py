"""One run's graph of named calls: who waits for whose output, who may go, and who never can.

Sans-I/O: calls arrive and end in any order, and each method returns the nodes for which that changed something: they
may go, or `refusal` says why they cannot. Outputs are kept in memory as long as the graph is, up to a bound.

A name is unique only where it is used: calls that share one, as those of an agent's loop may, are served like any
others as long as nobody names them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from proxy.refusal import Refusal

MOST_NODES = 10_000  # of a run that are remembered; then the oldest that ended is forgotten
MOST_MISSING = 32_768  # outputs that calls of a run wait for, all together; it bounds the search for a cycle
MOST_BEHIND = 64  # a longer chain need not be known exactly
_MOST_STEPS = 8192  # from call to call in one search for the chains that grew
_SHOWN = 8  # names in a message


class State(Enum):
    HELD = "held"  # it waits for outputs
    RUNNING = "running"  # the gateway, or its engine, works on it
    DONE = "done"
    FAILED = "failed"  # or was refused, or cancelled: its name is free again


_ENDED = (State.DONE, State.FAILED)


class NoOutput(NamedTuple):
    """Why a node has no output to give: a code for its consumers, and where that began (`node ROOT WHAT`)."""

    code: str
    root: str
    what: str

    def told_of(self, name: str) -> str:
        """The sentence for who asked for the output of the node `name`."""
        began = f"node {self.root!r} {self.what}"
        return began if name == self.root else f"node {name!r} could not run: {began}"


@dataclass(slots=True, eq=False)
class Node:
    """One call. `inputs` are the outputs that it asked for, as far as they are there; `missing` are the others.

    `behind` is how many calls wait for it one after the other, as far as is known. `named` says whether any call ever
    waited for it, `shared` whether another one has, or had, its name.
    """

    run: str
    name: str
    needs: tuple[str, ...]
    state: State
    behind: int = 0
    named: bool = False
    shared: bool = False
    inputs: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    output: str | None = None
    no_output: NoOutput | None = None
    refusal: Refusal | None = None  # why it cannot run
    handle: Any = None  # by what an engine that schedules nodes itself knows it


@dataclass(slots=True)
class Room:
    """How many bytes of outputs (in UTF-8) may be kept, and are."""

    most_bytes: int
    kept_bytes: int = 0


class Graph:
    """The nodes of one run. Its outputs take up `room` of its own, and of that of all runs together."""

    def __init__(self, run: str, room: Room, of_all: Room) -> None:
        self.run, self.room, self.of_all = run, room, of_all
        self._nodes: dict[str, Node] = {}
        self._consumers: dict[str, dict[Node, None]] = {}  # by the name that they miss
        self.missing = 0  # outputs that calls wait for

    def get(self, name: str) -> Node | None:
        return self._nodes.get(name)

    def is_to_wait(self, needs: Iterable[str], holds: bool = True) -> bool:
        """Whether a call with these needs would have to wait, now: without `holds`, until its engine has them."""
        found = [self._nodes.get(need) for need in needs]
        if any(node is not None and (node.shared or node.state is State.FAILED) for node in found):
            return False
        return any(node is None or (node.state is not State.DONE and (holds or node.handle is None)) for node in found)

    def arrive(self, name: str, needs: Sequence[str], holds: bool = True) -> tuple[Node, list[Node]]:
        """A call that is named came. Without `holds` it runs at once, and its engine sees to what it needs.

        Raises Refusal for a name that others have named already (409) and for a cycle (400): then nothing has changed.
        """
        known = self._nodes.get(name)
        if known is not None and known.named and known.state is not State.FAILED:
            what = "has answered already" if known.state is State.DONE else "is here already"
            message = f"node {name!r} {what}, and another call names it; such a name is for one call of a run"
            raise Refusal(409, message, "duplicate_node", param="X-Workflow-Node", retry=False)
        if cycle := self._cycle(name, needs):
            raise Refusal(400, f"these nodes wait for one another: {_chain(cycle)}", "node_cycle")
        node = Node(self.run, name, tuple(needs), State.HELD if holds else State.RUNNING)
        node.named = name in self._consumers
        if known is not None:
            self._replace(known, node)
        self._nodes[name] = node
        self._forget_oldest()
        ended: list[Node] = []
        for need in node.needs:
            producer = self._nodes.get(need)
            if producer is not None:
                producer.named = True
            if producer is not None and (producer.shared or producer.state in _ENDED):
                ended.append(producer)
            else:
                node.missing.add(need)
                self.missing += 1
                self._consumers.setdefault(need, {})[node] = None
        for producer in ended:
            if self._hand_over(producer, node) and node.refusal is not None:
                return node, self._tell_consumers(node)
        if not node.missing:
            node.state = State.RUNNING
        node.behind = min(MOST_BEHIND, 1 + max((one.behind for one in self._consumers.get(name, ())), default=-1))
        self._lengthen(node)
        return node, []

    def submit(self, node: Node, handle: Any) -> list[Node]:
        """An engine that schedules nodes itself has taken this one, and knows it by `handle`."""
        node.handle = handle
        return list(self._consumers.get(node.name, ()))

    def done(self, node: Node, output: str | None) -> list[Node]:
        """It answered: with a text, or (None) with something that has none."""
        if node.state in _ENDED:
            return []
        size = 0 if output is None else len(output.encode())
        if node.shared:
            pass  # nobody can name it
        elif output is None:
            node.no_output = NoOutput("node_without_text", node.name, "answered with no text")
        elif (full := self._is_too_much(size)) is not None:
            node.no_output = NoOutput("node_output_too_large", node.name, f"answered with {size} bytes, and {full}")
        else:
            node.output = output
            self._keep(size)
        node.state = State.DONE
        self._wants_nothing(node)
        return self._tell_consumers(node)

    def fail(self, node: Node, what: str) -> list[Node]:
        """It ended without an answer; `what` says how: "failed", "was cancelled"."""
        if node.state in _ENDED:
            return []
        self._lose(node, NoOutput("producer_failed", node.name, what))
        return self._tell_consumers(node)

    def expire(self, node: Node, waited_s: float) -> list[Node]:
        """It has been held for as long as it may."""
        if not node.missing or node.state is State.FAILED:
            return []
        if unknown := [need for need in node.needs if need in node.missing and need not in self._nodes]:
            message = f"waited {waited_s:.3g} s, and nobody sent {_these(unknown)}"
            node.refusal = Refusal(424, message, "unknown_node")
        else:
            late = [need for need in node.needs if need in node.missing]
            message = f"waited {waited_s:.3g} s, and there is no answer yet of {_these(late)}"
            node.refusal = Refusal(504, message, "node_timeout")
        return self.fail(node, f"was refused ({node.refusal.status} {node.refusal.code})")

    def drain(self) -> list[Node]:
        """No more calls come: those that wait for one that is not here never can go."""
        changed: list[Node] = []
        for name in [name for name in self._consumers if name not in self._nodes]:
            for node in list(self._consumers.get(name, ())):
                if node.refusal is None:
                    message = f"the gateway shuts down, and {_these([name])} is not here"
                    node.refusal = Refusal(503, message, "shutting_down")
                    changed += [node, *self.fail(node, "was refused: the gateway shuts down")]
        return changed

    @property
    def is_idle(self) -> bool:
        """Whether no call of it waits for another."""
        return not self._consumers

    def drop_outputs(self) -> None:
        """Keep no output any longer; who asks for one from now on is told so."""
        self._keep(-self.room.kept_bytes)
        for node in self._nodes.values():
            if node.output is not None:
                node.output = None
                what = "answered, and its output had to make room for those of other runs (limits.node_bytes)"
                node.no_output = NoOutput("node_output_too_large", node.name, what)

    # What follows from what -----------------------------------------------------------------------------------------

    def _tell_consumers(self, producer: Node) -> list[Node]:
        changed: list[Node] = []
        ended = [producer]  # a list and no recursion: a chain may be longer than the stack
        while ended:
            one = ended.pop()
            for consumer in list(self._consumers.get(one.name, ())):
                if self._hand_over(one, consumer):
                    changed.append(consumer)
                    if consumer.refusal is not None:
                        ended.append(consumer)
        return changed

    def _hand_over(self, producer: Node, consumer: Node) -> bool:
        """Give a consumer what came of its producer; whether that lets it go, or is why it cannot run."""
        if producer.output is not None:
            consumer.inputs[producer.name] = producer.output
            self._found(consumer, producer.name)
            if not consumer.missing:
                consumer.state = State.RUNNING
            return consumer.state is State.RUNNING
        assert producer.no_output is not None, "it ended, with an output or without"
        code, root, what = producer.no_output
        consumer.refusal = Refusal(424, producer.no_output.told_of(producer.name), code)
        self._lose(consumer, NoOutput("producer_failed", root, what))
        return True

    def _replace(self, known: Node, node: Node) -> None:
        """A call came under the name of another one, which nobody has named, or which failed."""
        del self._nodes[known.name]
        if known.shared or known.state is not State.FAILED:
            for one in (known, node):
                one.shared = True
                one.no_output = NoOutput("duplicate_node", one.name, "is the name of several calls of the run")
            self._drop(known)

    def _lose(self, node: Node, why: NoOutput) -> None:
        node.state, node.no_output = State.FAILED, node.no_output if node.shared else why
        self._wants_nothing(node)

    def _wants_nothing(self, node: Node) -> None:
        """It ended: what it was given, or waits for, is of no use any more."""
        node.inputs = {}
        for name in list(node.missing):
            self._found(node, name)

    def _found(self, consumer: Node, name: str) -> None:
        if name not in consumer.missing:
            return
        consumer.missing.remove(name)
        self.missing -= 1
        waiting = self._consumers[name]
        del waiting[consumer]
        if not waiting:
            del self._consumers[name]

    def _lengthen(self, node: Node) -> None:
        """Tell those that a call waits for how many wait behind them, so far as that is soon done."""
        rising, steps = [node], 0
        while rising and steps < _MOST_STEPS:
            one = rising.pop()
            steps += len(one.missing)
            for need in one.missing:
                producer = self._nodes.get(need)
                if producer is not None and producer.behind <= one.behind < MOST_BEHIND:
                    producer.behind = one.behind + 1
                    rising.append(producer)

    def _cycle(self, name: str, needs: Sequence[str]) -> list[str]:
        """The cycle that a call would close, from it back to it; empty where it closes none."""
        if name in needs:
            return [name, name]
        if name not in self._consumers:  # nobody waits for it
            return []
        came_from: dict[str, str] = dict.fromkeys(needs, name)
        open_ends = list(needs)
        while open_ends:
            at = open_ends.pop()
            node = self._nodes.get(at)
            for need in () if node is None else node.missing:
                if need == name:
                    path = [name, at]
                    while path[-1] != name:
                        path.append(came_from[path[-1]])
                    return path[::-1]
                if need not in came_from:
                    came_from[need] = at
                    open_ends.append(need)
        return []

    def _forget_oldest(self) -> None:
        if len(self._nodes) <= MOST_NODES:
            return
        ended = (node for node in self._nodes.values() if node.state in _ENDED)
        if (oldest := next(ended, None)) is not None:
            del self._nodes[oldest.name]
            self._drop(oldest)

    def _drop(self, node: Node) -> None:
        if node.output is not None:
            self._keep(-len(node.output.encode()))
            node.output = None

    def _is_too_much(self, size: int) -> str | None:
        """Why so many more bytes cannot be kept; None where they can."""
        for room, whose in ((self.room, "a run's outputs are"), (self.of_all, "the outputs of all runs together are")):
            if room.kept_bytes + size > room.most_bytes:
                return f"{whose} kept up to {room.most_bytes} (limits.node_bytes)"
        return None

    def _keep(self, size: int) -> None:
        self.room.kept_bytes += size
        self.of_all.kept_bytes += size


def _these(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'nodes' if len(names) > 1 else 'node'} {', '.join(map(repr, names[:_SHOWN]))}{more}"


def _chain(names: Sequence[str]) -> str:
    shown = names if len(names) <= _SHOWN else [*names[: _SHOWN - 1], "…", names[-1]]
    return " -> ".join(shown)
