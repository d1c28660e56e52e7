"""What a workload is: a way to plan runs, each a DAG of calls whose prompts grow out of earlier answers. No I/O."""

from dataclasses import dataclass
from random import Random
from typing import ClassVar, Protocol, Self

from loadgen import prompt
from loadgen.prompt import Message, Outputs, Piece


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a run.

    Its prompt may hold answers of `parents` only. `after` names calls that must have been answered first although
    nothing of theirs is used, as when a person asks one thing at a time. It is sent `pause_s` after the last of both
    (after the run's beginning, where there is none): the time that a person or a tool takes.
    """

    node: str
    step: str
    max_tokens: int
    prompt: tuple[Piece, ...]
    parents: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or not self.prompt:
            raise ValueError(f"{self.node!r} needs a prompt and max_tokens of at least 1, got {self.max_tokens}")
        if not 0 <= self.pause_s < float("inf"):
            raise ValueError(f"pause_s of {self.node!r} must be 0 s or more, got {self.pause_s}")
        if strange := self.quoted.difference(self.parents):
            raise ValueError(f"{self.node!r} quotes {min(strange)!r}, which is not one of its parents")

    @property
    def quoted(self) -> frozenset[str]:
        """The calls whose answers its prompt holds."""
        return frozenset(piece.answer_of for piece in self.prompt if piece.answer_of is not None)

    def messages(self, outputs: Outputs) -> list[Message]:
        """The prompt as a chat, with lengths that are about right for any tokenizer."""
        return prompt.messages(self.prompt, outputs)


@dataclass(frozen=True, slots=True)
class Run:
    """One planned workflow run. Raises ValueError unless every call comes later than all that it waits for."""

    workflow: str
    calls: tuple[Call, ...]

    def __post_init__(self) -> None:
        if not self.calls:
            raise ValueError(f"a run of {self.workflow} needs at least one call")
        known: set[str] = set()
        for call in self.calls:
            if call.node in known:
                raise ValueError(f"two calls of one run are called {call.node!r}")
            if missing := {*call.parents, *call.after} - known:
                raise ValueError(f"{call.node!r} waits for {sorted(missing)[0]!r}, which does not come before it")
            known.add(call.node)

    def quotes(self, node: str) -> bool:
        """Whether the answer of a call is part of another's prompt."""
        return any(piece.answer_of == node for call in self.calls for piece in call.prompt)


class Workload(Protocol):
    """A class of runs. Equal states of `rng` and equal numbers give equal runs.

    `number` counts the runs of a load; it is for workloads that go through something in its order.
    """

    name: ClassVar[str]

    @classmethod
    def paper(cls) -> Self:
        """The shape that the paper measured, for a GPU and a context of 4096 tokens."""
        ...

    @classmethod
    def small(cls) -> Self:
        """A shape of the same kind that a small model on two CPU cores serves in seconds."""
        ...

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        """The same workload with other lengths: the knobs of a campaign. None leaves what is.

        What is the input depends on the workload and stands in its description. Raises ValueError for a length that it
        cannot have.
        """
        ...

    def plan(self, rng: Random, number: int = 0) -> Run: ...


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A call that should be sent at `due_s`, and whether it is the last that its run sends."""

    call: Call
    final: bool
    due_s: float = 0.0


class Execution:
    """A run under way since `at_s`: which calls may go, and the answers so far. Each call is handed out once.

    A call is due when the last answer that it waits for came, and its pause after that; `take_ready` hands it out as
    soon as the answers are there. `at_once`: a gateway fills the answers in that a prompt quotes, so nobody waits for
    them here, unless there is a pause after them, which is somebody's time.
    """

    def __init__(self, run: Run, at_s: float = 0.0, at_once: bool = False) -> None:
        self.run = run
        self._at_once = at_once
        self.outputs: dict[str, str] = {}
        self._at_s = at_s
        self._answered_s: dict[str, float] = {}
        self._waiting = list(run.calls)

    @property
    def done(self) -> bool:
        return len(self.outputs) == len(self.run.calls)

    def take_ready(self) -> list[Dispatch]:
        """The calls that have everything they wait for and were not handed out before, in the order of the plan."""
        ready = [call for call in self._waiting if all(node in self.outputs for node in self._waits_for(call))]
        self._waiting = [call for call in self._waiting if call not in ready]
        last = len(ready) - 1 if not self._waiting else None
        return [Dispatch(call, index == last, self._due_s(call)) for index, call in enumerate(ready)]

    def answer(self, node: str, text: str, at_s: float = 0.0) -> None:
        self.outputs[node] = text
        self._answered_s[node] = at_s

    def _due_s(self, call: Call) -> float:
        waited = [self._answered_s[node] for node in self._waits_for(call)]
        return max(waited, default=self._at_s) + call.pause_s

    def _waits_for(self, call: Call) -> tuple[str, ...]:
        if not self._at_once or call.pause_s:
            return (*call.parents, *call.after)
        return (*(node for node in call.parents if node not in call.quoted), *call.after)


def tags(run_id: str, workflow: str, dispatch: Dispatch) -> dict[str, str]:
    """The headers that tell a gateway where a request stands in its run.

    `X-Workflow-Final` means that the run sends nothing after this request; others of it may still be in flight.
    """
    call = dispatch.call
    headers = {
        "X-Workflow-Id": run_id,
        "X-Workflow-Name": workflow,
        "X-Workflow-Step": call.step,
        "X-Workflow-Node": call.node,
    }
    if call.parents:
        headers["X-Workflow-Parent"] = ",".join(call.parents)
    if dispatch.final:
        headers["X-Workflow-Final"] = "true"
    return headers
