"""What a trial asks for: its load, and where it can be had in virtual time, its emulated host."""

import hashlib

from emulator.core.presets import PresetError, load_gpu
from emulator.core.settings import OutOfMemory
from loadgen import virtual
from loadgen.arrivals import Closed, parse
from loadgen.campaign.definition import Campaign
from loadgen.campaign.grid import Cell, Trial
from loadgen.campaign.knobs import KNOBS, Value
from loadgen.catalog import CatalogError, workload
from loadgen.client import MODES, Mode
from loadgen.record import Result
from loadgen.schedule import Load, Stream
from loadgen.virtual_host import Host

HOST = ("gpu", "gpus", "model", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization")
HOST_TOO = ("enable_prefix_caching", "in_flight", "power_limit_w", "sm_mhz")


class Infeasible(Exception):
    """The machine cannot be set like this, as when memory does not suffice: an X in the figure. Says why."""


class NotPossibleHere(Exception):
    """Nothing is wrong with the cell, but this driver has no means to try it. Says what would."""


def load_of(campaign: Campaign, trial: Trial) -> Load:
    """The load of a trial: equal for all cells of a repeat but for what the knobs change.

    Raises CatalogError for a length that a workload cannot have, ValueError for arrivals that are none.
    """
    cell, streams = trial.cell, []
    for label in cell.parts:
        spec = campaign.workload(label)
        lengths = (_whole(cell, "input_tokens"), _whole(cell, "output_tokens"))
        made = workload(spec.workload, spec.size, spec.fields, *lengths)
        users = _whole(cell, "users") or 1
        text = cell.get("arrivals")
        arrivals = Closed(users) if text is None else parse(str(text))
        per_user = spec.runs_per_user or campaign.runs_per_user
        streams.append(Stream((made,), arrivals, runs=per_user * users))
    return Load(tuple(streams), seed=f"{campaign.seed} repeat {trial.repeat}", warm_up_s=campaign.warm_up_s)


def salt_of(campaign: Campaign, trial: Trial) -> str:
    """The `cache_salt` of a trial, so that it finds no other's prefixes: short, since vLLM takes 128 characters."""
    named = f"{campaign.name} {campaign.seed} {trial.cell.key} {trial.repeat}"
    return hashlib.sha256(named.encode()).hexdigest()


def mode_of(cell: Cell) -> Mode:
    """How runs are sent. Raises ValueError for a way that there is not."""
    said = cell.get("mode") or "calls"
    if said not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {said!r}")
    return said


def virtually(campaign: Campaign, trial: Trial) -> Result:
    """The trial in virtual time. Raises Infeasible, NotPossibleHere."""
    cell = trial.cell
    if cell.get("engine") not in (None, "vllm"):
        raise NotPossibleHere(f"the emulator has no engine {cell.get('engine')!r}: this needs a machine that runs it")
    if cell.get("policy") is not None:
        raise NotPossibleHere("virtual time has no gateway, so no policy: this needs a run over HTTP")
    if cell.get("mode") == "nodes":
        raise NotPossibleHere("virtual time has no gateway that could fill answers in: this needs a run over HTTP")
    try:
        load, host = load_of(campaign, trial), host_of(cell)
        host.engine(load_gpu(host.gpu))
    except OutOfMemory as error:
        raise Infeasible(f"out of memory: {error}") from None
    except (PresetError, CatalogError, ValueError) as error:
        raise NotPossibleHere(str(error)) from None
    return virtual.run(load, host, cache_salt=salt_of(campaign, trial))


def host_of(cell: Cell) -> Host:
    """The emulated host of a cell. Raises ValueError for a knob that it cannot be turned to."""
    chosen = {knob: cell.get(knob) for knob in (*HOST, *HOST_TOO)}
    settings = {knob: KNOBS[knob].default if value is None else value for knob, value in chosen.items()}
    return Host(**settings)  # pyright: ignore[reportArgumentType] - names and defaults are those of KNOBS


def _whole(cell: Cell, knob: str) -> int | None:
    value: Value = cell.get(knob)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{knob} must be a whole number, got {value!r}")
    return value
