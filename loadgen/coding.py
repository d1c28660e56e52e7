"""Multi-agent coding: an architect designs, engineers write a module each, reviewers comment, revisers rework."""

from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Self

from loadgen import corpus
from loadgen.prompt import Piece
from loadgen.workload import Call, Run


@dataclass(frozen=True)
class Coding:
    """Lengths in approximate tokens; one architect and, for each of `modules` modules, three further calls.

    Each role has a ceiling on its answer, and what one role reads of another's work is cut to that role's ceiling too,
    so that no prompt outgrows the context. `role_tokens` is how much of each role's standing instructions is sent, at
    most as much as ships. The input whose length is a knob are these instructions; the output is the engineers' code,
    half as much for the other roles.
    """

    name: ClassVar[str] = "coding"

    modules: tuple[int, int] = (5, 6)
    role_tokens: int = 400
    design_tokens: int = 500
    code_tokens: int = 1000
    review_tokens: int = 500
    revision_tokens: int = 500

    def __post_init__(self) -> None:
        low, high = self.modules
        most = min(len(task["modules"]) for task in _tasks())
        if not 1 <= low <= high <= most:
            raise ValueError(f"modules must be a range within 1-{most}, got {low}-{high}")

    @classmethod
    def paper(cls) -> Self:
        return cls()

    @classmethod
    def small(cls) -> Self:
        return cls(
            modules=(2, 3), role_tokens=40, design_tokens=32, code_tokens=32, review_tokens=20, revision_tokens=32
        )

    def sized(self, input_tokens: int | None = None, output_tokens: int | None = None) -> Self:
        sized = self if input_tokens is None else replace(self, role_tokens=input_tokens)
        if output_tokens is None:
            return sized
        half = max(1, output_tokens // 2)
        return replace(sized, code_tokens=output_tokens, design_tokens=half, review_tokens=half, revision_tokens=half)

    def plan(self, rng: Random, number: int = 0) -> Run:
        task = rng.choice(_tasks())
        modules: list[str] = task["modules"][: rng.randint(*self.modules)]
        brief = f"Task: {task['brief']}\nModules: {', '.join(_title(module) for module in modules)}."
        calls = [Call("architect", "architect", self.design_tokens, self._prompt("architect", brief, None, {}))]
        for step, limit, inputs in (
            ("engineer", self.code_tokens, ("architect",)),
            ("reviewer", self.review_tokens, ("architect", "engineer")),
            ("reviser", self.revision_tokens, ("architect", "engineer", "reviewer")),
        ):
            for number, module in enumerate(modules, start=1):
                read = {role: role if role == "architect" else f"{role}-{number}" for role in inputs}
                prompt = self._prompt(step, brief, module, read)
                calls.append(Call(f"{step}-{number}", step, limit, prompt, parents=tuple(read.values())))
        return Run(self.name, tuple(calls))

    def _prompt(self, step: str, brief: str, module: str | None, read: dict[str, str]) -> tuple[Piece, ...]:
        """What all calls of a role share comes first, what differs last, so that an engine can reuse the prefix."""
        limits = {"architect": self.design_tokens, "engineer": self.code_tokens, "reviewer": self.review_tokens}
        headings = {"architect": "Design", "engineer": "Code", "reviewer": "Review"}
        standing = corpus.read(f"coding/{step}.md")
        pieces = [Piece(standing, min(self.role_tokens, corpus.tokens(standing)), role="system"), Piece(brief)]
        for role, node in read.items():
            pieces += [Piece(f"\n\n{headings[role]}:\n"), Piece(tokens=limits[role], answer_of=node)]
        pieces.append(Piece(f"\n\nYour module: {module}" if module else "\n\nWrite the design."))
        return tuple(pieces)


def _title(module: str) -> str:
    return module.partition(":")[0]


def _tasks() -> list[dict[str, Any]]:
    return corpus.read_json("coding/tasks.json")
