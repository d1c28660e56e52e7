"""The four workloads as an engine sees them: prompts of known pieces, each waiting for the answers that it reads."""

from dataclasses import dataclass
from functools import cache
from random import Random

from emulator.core.prompt import Text
from loadgen import corpus
from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.search import Search
from loadgen.summarize import Summarize
from loadgen.workload import Call, Execution, Workload

WORKLOADS: dict[str, Workload] = {
    workload.name: workload for workload in (Search.paper(), Summarize.paper(), Coding.paper(), Composite.paper())
}


@dataclass(frozen=True, slots=True)
class Job:
    """One call: it may go when those in `after` (places in its run) have been answered."""

    step: str
    prompt: tuple[Text, ...]
    max_tokens: int
    after: tuple[int, ...]

    @property
    def head(self) -> int:
        """A hash of the prompt's beginning."""
        return hash(self.prompt[0])


@dataclass(frozen=True, slots=True)
class Task:
    """One run of a workflow."""

    workflow: str
    jobs: tuple[Job, ...]


@cache
def tasks(workload: str, seed: int, count: int) -> tuple[Task, ...]:
    """The first `count` runs of a workload; the same for the same seed."""
    rng = Random(f"{workload} {seed}")
    return tuple(_task(WORKLOADS[workload], rng, number) for number in range(count))


def _task(workload: Workload, rng: Random, number: int) -> Task:
    run = workload.plan(rng)
    execution, places = Execution(run), {call.node: place for place, call in enumerate(run.calls)}
    jobs: dict[str, Job] = {}
    while not execution.done:
        for dispatch in execution.take_ready():
            call = dispatch.call
            after = tuple(places[node] for node in (*call.parents, *call.after))
            jobs[call.node] = Job(call.step, _pieces(call, execution), call.max_tokens, after)
            execution.answer(call.node, _answer(f"{number} {call.node}", call.max_tokens))
    return Task(run.workflow, tuple(jobs[call.node] for call in run.calls))


def _pieces(call: Call, execution: Execution) -> tuple[Text, ...]:
    """Paragraphs, known by what they say: prompts that begin with the same ones share them in the engine's cache."""
    pieces = [
        piece for message in call.messages(execution.outputs) for piece in message["content"].split("\n\n") if piece
    ]
    if len(pieces) > 3 and call.step == "query":  # the long head that is always the same
        pieces = ["\n\n".join(pieces[:-1]), pieces[-1]]
    return tuple(Text(hash(piece), corpus.tokens(piece)) for piece in pieces)


def _answer(name: str, tokens: int) -> str:
    """A text of that many tokens that is nobody else's."""
    words = f"{name} "
    return (words * (tokens * corpus.CHARS_PER_TOKEN // len(words) + 1))[: tokens * corpus.CHARS_PER_TOKEN]
