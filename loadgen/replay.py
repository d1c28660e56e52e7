"""Replay: runs as they were recorded, with their lengths, their order and the pauses between their calls.

Prompts are the recorded ones where they were kept (JSON lines may have them), else text of the same length, of which
the first `cached_tokens` are the same in all calls of a step: what was found in a cache is then found again, on the
whole. Answers are never quoted.
"""

from dataclasses import dataclass, replace
from functools import cache
from random import Random
from typing import ClassVar, Self

from loadgen import corpus
from loadgen.arrivals import Trace
from loadgen.prompt import Piece
from loadgen.recorded import Placed, RecordedCall, recorded_runs
from loadgen.workload import Call, Run


@dataclass(frozen=True)
class Replay:
    """The runs in `file` (`loadgen.recorded`), one after the other and from the beginning again.

    `input_tokens` and `output_tokens` stand in for what was recorded of every call, `pace` divides the pauses (2: twice
    as fast). The input whose length is a knob is the whole prompt, where its text was not recorded.
    """

    name: ClassVar[str] = "replay"

    file: str = ""
    pace: float = 1.0
    input_tokens: int = 0
    output_tokens: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.pace < float("inf"):
            raise ValueError(f"pace must be above 0, got {self.pace}")
        if min(self.input_tokens, self.output_tokens) < 0:
            raise ValueError("input_tokens and output_tokens must be 0 (as recorded) or more")

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls()

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        return replace(
            self,
            input_tokens=self.input_tokens if input_tokens is None else input_tokens,
            output_tokens=self.output_tokens if output_tokens is None else output_tokens,
        )

    def arrivals(self) -> Trace:
        """The recorded beginnings, at this pace. Raises RecordedError."""
        return Trace(tuple(run.at_s / self.pace for run in recorded_runs(self.file)))

    def plan(self, rng: Random, number: int = 0) -> Run:
        if not self.file:
            raise ValueError("replay needs a file: a ledger, the record of a load, or JSON lines")
        runs = recorded_runs(self.file)
        recorded = runs[number % len(runs)]
        return Run(recorded.workflow, tuple(self._call(one, rng) for one in recorded.calls))

    def _call(self, placed: Placed, rng: Random) -> Call:
        call = placed.call
        parents = tuple(node for node in placed.waits_for if node in call.parents)
        return Call(
            node=call.node,
            step=call.step,
            max_tokens=self.output_tokens or call.output_tokens,
            prompt=self._prompt(call, rng),
            parents=parents,
            after=tuple(node for node in placed.waits_for if node not in parents),
            pause_s=placed.pause_s / self.pace,
        )

    def _prompt(self, call: RecordedCall, rng: Random) -> tuple[Piece, ...]:
        if call.messages:
            return tuple(
                Piece(message["content"], role=message.get("role", "user"))
                for message in call.messages
                if message.get("content")
            )
        length = self.input_tokens or call.prompt_tokens or 1
        shared = min(call.cached_tokens, length)
        pieces: list[Piece] = []
        if shared:
            pieces.append(Piece(_shared(self.file, call.workflow, call.step), shared))
        if length > shared:
            pieces.append(Piece(corpus.passage(rng, length - shared), length - shared))
        return tuple(pieces)


@cache
def _shared(file: str, workflow: str, step: str) -> str:
    """What calls of a step begin with, as long as any of them needs."""
    calls = (one.call for run in recorded_runs(file) for one in run.calls)
    longest = max(call.cached_tokens for call in calls if (call.workflow, call.step) == (workflow, step))
    return corpus.passage(Random(f"{workflow}/{step}"), longest)
