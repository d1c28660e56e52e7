"""A real machine for a campaign: where its endpoint is, what the machine is, and the commands that turn its knobs.

    url: http://127.0.0.1:8080                # a gateway, or an engine (which knows no joules)
    models: {vllm: llama, parrot: by-parrot}  # what each setting of `engine` is called there, if it has several
    exact: true                               # prompts as token ids, answers as long as they may be
    is: {gpu: h200, model: llama-2-7b}        # in the place of what the campaign fixes
    about: {vllm: 0.26.0, driver: "580"}      # what else the methods section should say of it
    turn:
      - knobs: [in_flight]
        command: sed -i "s/in_flight:.*/in_flight: $JOULEGATE_IN_FLIGHT/" gateway.yaml && kill -HUP $(cat gateway.pid)
      - knobs: [max_num_seqs, max_num_batched_tokens]
        command: ./restart-engine.sh      # which ends when the engine is ready

A command finds the values in the environment, `JOULEGATE_` and the knob's name in capitals, empty for none; it is run
by `sh` when one of its knobs has another value than before. Exit status 3 means that the machine cannot be set like
that (out of memory, say): the cell is infeasible, and the last line on stderr says why.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loadgen import http
from loadgen.answer import AnswerError
from loadgen.campaign.books import Agreement, Books
from loadgen.campaign.definition import Campaign
from loadgen.campaign.faults import CampaignError
from loadgen.campaign.grid import Cell, Trial, cells
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.campaign.trial import Infeasible, NotPossibleHere, load_of, mode_of, salt_of
from loadgen.catalog import CatalogError
from loadgen.client import Target
from loadgen.record import Result

LOAD_KNOBS = frozenset({"users", "arrivals", "output_tokens", "input_tokens", "mode"})
INFEASIBLE = 3


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Turn(_Strict):
    """One command for one or several knobs."""

    knobs: Annotated[tuple[str, ...], Field(min_length=1)]
    command: str
    timeout_s: Annotated[float, Field(gt=0)] = 900.0


class Machine(_Strict):
    """The machine and its endpoint; `body` are further fields of every request. The key is `$JOULEGATE_KEY`.

    `models` are the models to ask for by `engine`: where a gateway stands before several engines, they turn that knob.
    """

    url: str
    model: str = ""
    models: Mapping[str, str] = Field(default_factory=dict)
    exact: bool = False
    body: Mapping[str, Any] = Field(default_factory=dict)
    facts: Mapping[str, Value] = Field(default_factory=dict, alias="is")
    about: Mapping[str, Value] = Field(default_factory=dict)
    turn: tuple[Turn, ...] = ()

    @property
    def turned(self) -> frozenset[str]:
        """The knobs that can be turned here."""
        by_name = {"engine"} if self.models else set()
        return frozenset(knob for turn in self.turn for knob in turn.knobs) | by_name

    def campaign(self, campaign: Campaign) -> Campaign:
        """The campaign as it is on this machine. Raises CampaignError for a fixed knob that nobody answers for."""
        fixed = {**campaign.fixed, **self.facts}
        sweeps = {
            name: sweep.model_copy(
                update={"fixed": {knob: value for knob, value in sweep.fixed.items() if knob not in self.facts}}
            )
            for name, sweep in campaign.sweeps.items()
        }
        here = campaign.model_copy(update={"fixed": fixed, "sweeps": sweeps})
        answered = LOAD_KNOBS | self.turned | self.facts.keys()
        swept = {knob for sweep in sweeps.values() for knob in sweep.knobs}
        settings = {knob: value for cell in cells(here) for knob, value in cell.settings if knob not in swept}
        if unknown := sorted(settings.keys() - answered):
            said = ", ".join(f"{knob} {settings[knob]}" for knob in unknown)
            raise CampaignError(
                f"the campaign fixes {said}: say what this machine has under `is`, or how to set it under `turn`"
            )
        return here


def load(file: Path) -> Machine:
    """A machine from its file. Raises CampaignError."""
    try:
        machine = Machine.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise CampaignError(f"{file} cannot be read: {error.strerror or error}") from None
    except yaml.YAMLError as error:
        raise CampaignError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CampaignError(f"{file}: {place}: {first['msg']}") from None
    if unknown := sorted({*machine.turned, *machine.facts} - KNOBS.keys()):
        raise CampaignError(f"{file}: there is no knob {unknown[0]!r}; there are {', '.join(KNOBS)}")
    if both := sorted(machine.turned & machine.facts.keys()):
        raise CampaignError(f"{file}: {both[0]} stands under `is` and under `turn`: it is one or the other")
    return machine


class OverHttp:
    """Drives trials over HTTP, and turns the machine's knobs before each."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._set: dict[str, Value] = {}

    def __call__(self, campaign: Campaign, trial: Trial) -> Result:
        """Raises Infeasible, NotPossibleHere, and CampaignError where a command fails or nobody answers."""
        try:
            load = load_of(campaign, trial)
        except (CatalogError, ValueError) as error:
            raise NotPossibleHere(str(error)) from None
        self._turn(trial.cell)
        if self._set and campaign.settle_s:
            time.sleep(campaign.settle_s)
        machine, key = self._machine, os.environ.get("JOULEGATE_KEY")
        try:
            target = Target(
                url=machine.url,
                model=self._model(trial.cell),
                key=key,
                exact=machine.exact,
                mode=mode_of(trial.cell),
                cache_salt=salt_of(campaign, trial),
                body=machine.body,
            )
        except ValueError as error:
            raise NotPossibleHere(str(error)) from None
        books = Books(machine.url, key)
        before = books.read()
        try:
            result = http.run(load, target)
        except AnswerError as error:
            raise CampaignError(f"{machine.url} does not serve: {error}") from None
        agreement = Agreement.of(result, before, books.read())
        facts = {**result.load.facts, "books": agreement.said() if agreement else None, "machine": dict(machine.about)}
        return replace(result, load=replace(result.load, facts=facts))

    def _model(self, cell: Cell) -> str:
        models, engine = self._machine.models, str(cell.get("engine"))
        if cell.get("engine") is None or not models:
            return self._machine.model
        if engine not in models:
            raise NotPossibleHere(f"no model under `models` is served by engine {engine!r}; there are {sorted(models)}")
        return models[engine]

    def _turn(self, cell: Cell) -> None:
        wanted = {knob: value for knob, value in cell.settings if knob not in LOAD_KNOBS | self._machine.facts.keys()}
        if missing := sorted(wanted.keys() - self._machine.turned):
            raise NotPossibleHere(f"no command under `turn` sets {missing[0]}")
        for turn in self._machine.turn:
            values = {knob: wanted[knob] for knob in turn.knobs if knob in wanted}
            if values and any(self._set.get(knob, _NEVER) != value for knob, value in values.items()):
                for knob in values:
                    self._set.pop(knob, None)  # until the command has ended well, nobody knows
                self._run(turn, values)
                self._set |= values

    def _run(self, turn: Turn, values: Mapping[str, Value]) -> None:
        named = {f"JOULEGATE_{knob.upper()}": "" if value is None else str(value) for knob, value in values.items()}
        said = ", ".join(f"{knob}={value}" for knob, value in values.items())
        try:
            done = subprocess.run(
                ["sh", "-c", turn.command],
                env={**os.environ, **named},
                timeout=turn.timeout_s,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                check=False,
                text=True,
            )
        except subprocess.TimeoutExpired:
            raise CampaignError(f"the command for {said} did not end within {turn.timeout_s:g} s") from None
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if done.returncode == INFEASIBLE:
            raise Infeasible(last)
        if done.returncode:
            raise CampaignError(f"the command for {said} ended with status {done.returncode}: {last}")


_NEVER = object()
