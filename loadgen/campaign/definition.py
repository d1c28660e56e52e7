"""What a campaign is: the YAML file that declares its grid and its panels. `builtin/` has those that ship.

    name: batch
    title: What company is worth
    repeats: 10
    fixed: {users: 16, output_tokens: 400}      # knobs that no sweep turns, by the names in loadgen/campaign/knobs.py
    workloads:                                  # those of the catalog are there already, in the paper's size
      sessions: {workload: search, fields: {queries: [2, 8]}, runs_per_user: 4}
    sweeps:
      gate: {workloads: [sessions, search+coding], knobs: {in_flight: [1, 4, 16]}}
    panels:
      - {figure: "1", title: Joules a token, sweep: gate, kind: lines, measures: [joules_per_token],
         paper: "falls for all", expects: [{shape: falls, of: sessions}]}

`a+b` is two workloads side by side, each with its own users. Every sweep is the full grid of its knobs. A panel shows
measures of a sweep over its first knob (or `x`), and what it answers: a sentence, and what that expects to be seen.
"""

import difflib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from loadgen.campaign.faults import CampaignError
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.catalog import SIZES, registered
from loadgen.measures import MEASURES, Window
from loadgen.statistics import Method

Kind = Literal["dual", "lines", "box", "bars", "timeline"]
Shape = Literal["rises", "falls", "flat", "linear", "lowest_at", "highest_at", "sharpest_from", "below", "about"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class WorkloadSpec(_Strict):
    """A workload of the catalog with other fields, under a name of the campaign's own."""

    workload: str
    size: str = "paper"
    fields: Mapping[str, Any] = Field(default_factory=dict)
    runs_per_user: Annotated[int, Field(ge=1)] | None = None  # in the place of the campaign's

    @model_validator(mode="after")
    def exists(self) -> Self:
        _known(self.workload, registered(), "workload")
        _known(self.size, SIZES, "size")
        return self


class Sweep(_Strict):
    """The full grid of `knobs` for each of `workloads`; `fixed` knobs in the place of the campaign's."""

    workloads: Annotated[tuple[str, ...], Field(min_length=1)]
    knobs: Mapping[str, Annotated[tuple[Value, ...], Field(min_length=1)]]
    fixed: Mapping[str, Value] = Field(default_factory=dict)

    @model_validator(mode="after")
    def knobs_are_known(self) -> Self:
        for knob in (*self.knobs, *self.fixed):
            _known(knob, KNOBS, "knob")
        return self


class Expect(_Strict):
    """What a claim says of one line of a figure: `of` a workload (or another series), all of them by default.

    `rises` and `falls` from the first value to the last without a step back; `flat` within 10 %; `linear`: a straight
    line explains 98 %; `lowest_at`, `highest_at` and `sharpest_from` (the steepest step begins there) a `value` of
    the knob; `below` another series, `value`, throughout; `about` a `value` as the ratio of highest to lowest, within
    a quarter. `to` ends the knob's values that are looked at.
    """

    shape: Shape
    of: str | None = None
    measure: str | None = None
    value: Value = None
    to: float | None = None

    @model_validator(mode="after")
    def is_complete(self) -> Self:
        if (self.value is None) is (self.shape in ("lowest_at", "highest_at", "sharpest_from", "below", "about")):
            raise ValueError(f"{self.shape} {'needs a' if self.value is None else 'has no'} value")
        if self.measure is not None:
            _known(self.measure, MEASURES, "measure")
        return self


class Panel(_Strict):
    """One figure. `dual` is the paper's: two measures, each divided by its highest mean, on two axes."""

    figure: Name
    title: str
    sweep: str
    kind: Kind
    measures: tuple[str, ...] = ()
    x: str | None = None
    only: Mapping[str, Value] = Field(default_factory=dict)  # the cells with these settings alone
    paper: str = ""
    expects: tuple[Expect, ...] = ()

    @model_validator(mode="after")
    def measures_are_known(self) -> Self:
        for measure in self.measures:
            _known(measure, MEASURES, "measure")
        wanted = {"dual": 2, "timeline": 0}.get(self.kind)
        if (wanted is None and not self.measures) or (wanted is not None and len(self.measures) != wanted):
            raise ValueError(f"a figure of kind {self.kind} needs {wanted if wanted is not None else 'some'} measures")
        return self


class Analysis(_Strict):
    """A table over a whole sweep.

    `energy model`: joules of a request by its lengths in and out, for each setting of the other knobs. `variance`:
    which share of the measure's variance each knob explains, and the workload. `interference`: what each workload costs
    alone and beside each other, from cells `a` and `a+b`.
    """

    kind: Literal["energy model", "variance", "interference"]
    sweep: str
    measure: str = "joules_per_run"
    paper: str = ""

    @model_validator(mode="after")
    def measure_is_known(self) -> Self:
        _known(self.measure, MEASURES, "measure")
        return self


class Passing(_Strict):
    """What a run must keep to if it is to count as passed: seconds of the run, and to the first token of each call."""

    latency_s: Annotated[float, Field(gt=0)] | None = None
    ttft_s: Annotated[float, Field(gt=0)] | None = None


class Quick(_Strict):
    """What a look of a minute takes in the campaign's place."""

    repeats: Annotated[int, Field(ge=1)] = 3
    runs_per_user: Annotated[int, Field(ge=1)] | None = None


class Campaign(_Strict):
    """A whole campaign. `unsaid` are fixed values that its source leaves open, and why these were taken.

    `worth` is what its figures can and cannot say, which its report begins with.
    """

    name: Name
    title: str
    question: str = ""
    source: str = ""
    seed: int = 1
    repeats: Annotated[int, Field(ge=1)] = 10
    runs_per_user: Annotated[int, Field(ge=1)] = 1
    warm_up_s: Annotated[float, Field(ge=0)] = 0.0
    settle_s: Annotated[float, Field(ge=0)] = 0.0  # between two trials on a real machine
    window: Window = "whole"
    interval: Method = "t"
    check: Passing = Passing()
    fixed: Mapping[str, Value] = Field(default_factory=dict)
    unsaid: tuple[str, ...] = ()
    worth: tuple[str, ...] = ()
    workloads: Mapping[str, WorkloadSpec] = Field(default_factory=dict)
    sweeps: Annotated[Mapping[str, Sweep], Field(min_length=1)]
    panels: tuple[Panel, ...] = ()
    analyses: tuple[Analysis, ...] = ()
    quick: Quick = Quick()

    @model_validator(mode="after")
    def parts_fit_together(self) -> Self:
        for knob in self.fixed:
            _known(knob, KNOBS, "knob")
        for sweep in self.sweeps.values():
            for label in sweep.workloads:
                parts = label.split("+")
                if len(set(parts)) < len(parts):
                    raise ValueError(f"{label!r} names a workload twice: give one of them a label of its own")
                for part in parts:
                    _known(part, {*self.workloads, *registered()}, "workload")
        figures = [panel.figure for panel in self.panels]
        if twice := next((figure for figure in figures if figures.count(figure) > 1), None):
            raise ValueError(f"two panels are called {twice!r}")
        for analysis in self.analyses:
            _known(analysis.sweep, self.sweeps, "sweep")
        for panel in self.panels:
            _known(panel.sweep, self.sweeps, "sweep")
            for knob in (*panel.only, *([panel.x] if panel.x else [])):
                _known(knob, self.sweeps[panel.sweep].knobs, "knob of this sweep")
        return self

    def workload(self, label: str) -> WorkloadSpec:
        """The workload under a label."""
        return self.workloads.get(label) or WorkloadSpec(workload=label)

    def quickened(self) -> "Campaign":
        """The same campaign for a minute's look: fewer repeats, and less work where `quick` says so."""
        runs = self.quick.runs_per_user
        workloads = {label: spec.model_copy(update={"runs_per_user": runs}) for label, spec in self.workloads.items()}
        changed: dict[str, Any] = {"repeats": self.quick.repeats}
        if runs is not None:
            changed |= {"runs_per_user": runs, "workloads": workloads}
        return self.model_copy(update=changed)


def builtins() -> list[str]:
    """The campaigns that ship, by name."""
    return sorted(file.name.removesuffix(".yaml") for file in _builtin().iterdir() if file.name.endswith(".yaml"))


def load(name: str) -> Campaign:
    """A campaign that ships, by its name, or one of the user's, by its file. Raises CampaignError."""
    if name in builtins():
        return parse(_builtin().joinpath(f"{name}.yaml").read_text(encoding="utf-8"), name)
    file = Path(name)
    if not file.is_file():
        near = difflib.get_close_matches(name, builtins(), 1)
        hint = f"{near[0]!r} would be" if near else f"there are {', '.join(builtins())}"
        raise CampaignError(f"{name!r} is neither a file nor a campaign that ships; {hint}")
    return parse(file.read_text(encoding="utf-8"), name)


def parse(text: str, name: str = "campaign") -> Campaign:
    """A campaign from YAML. Raises CampaignError that names the first thing that is wrong."""
    try:
        data = yaml.safe_load(text)
        if not isinstance(data, dict):
            raise CampaignError(f"{name}: a campaign is a mapping with name, title and sweeps")
        return Campaign.model_validate(data)
    except yaml.YAMLError as error:
        raise CampaignError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"there is no such key{_hint(str(first['loc'][-1]), _KEYS)}"
        raise CampaignError(f"{name}: {place + ': ' if place else ''}{message}") from None


def _known(name: str, known: Iterable[str], what: str) -> None:
    known = list(known)
    if name not in known:
        raise ValueError(f"there is no {what} {name!r}{_hint(name, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"; {near[0]!r} would be" if near else f"; there are {', '.join(known)}"


def _builtin() -> Any:
    return resources.files("loadgen.campaign").joinpath("builtin")


_MODELS = (Campaign, Sweep, Panel, Analysis, Expect, WorkloadSpec, Passing, Quick)
_KEYS = {key for model in _MODELS for key in model.model_fields}
