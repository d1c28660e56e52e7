"""`joulegate attribute`: a recorded trace, attributed again offline."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from proxy.config import ConfigError
from proxy.energy.prior import Coefficients, prior
from proxy.energy.replay import Attributed, Outcome, attribute
from proxy.energy.trace import Scenario, Trace, TraceError, read_trace

PRICES = ("step_j", "prompt_j", "output_j", "context_j")


def run(file: Path, *, json: bool, fit_on: str | None, gpu: str, model: str, out: Console) -> None:
    """Attribute and show. Raises ConfigError for what the user can mend."""
    try:
        trace = read_trace(file)
    except TraceError as error:
        raise ConfigError(str(error)) from None
    chosen = list(trace.scenarios) if fit_on is None else [name.strip() for name in fit_on.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in trace.scenarios]:
        known = ", ".join(trace.scenarios)
        raise ConfigError(f"--fit-on: {file} has no scenario {unknown[0]!r}; it has {known}")
    result = attributed(trace, chosen, gpu, model)
    if json:
        out.file.write(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        show(result, out)


def attributed(trace: Trace, fit_on: Sequence[str], gpu: str = "", model: str = "") -> dict[str, Any]:
    """Joules of each scenario by class and by request, and the prices that they rest on.

    `gpu` and `model` choose the prior, where the trace does not say itself what its engines are.
    """
    priors = {name: _prior(trace, name, gpu, model) for one in trace.scenarios.values() for name in one.engines()}
    found = attribute(trace, priors, fit_on)
    return {
        "scenarios": {name: _scenario(found.scenarios[name], one) for name, one in trace.scenarios.items()},
        "coefficients": _by_engine({name: _fitted(found, name, fit_on) for name in priors}),
        "prior": _by_engine({name: _prices(one) for name, one in priors.items()}),
    }


def _prior(trace: Trace, engine: str, gpu: str, model: str) -> Coefficients:
    own_gpu, own_model = trace.engines.get(engine, ("", ""))
    return prior(gpu or own_gpu, model or own_model)


def _scenario(outcome: Outcome, scenario: Scenario) -> dict[str, Any]:
    cls_of = {one.id: one.cls for one in scenario.served}
    classes: dict[str, dict[str, Any]] = {}
    uj: dict[str, list[int]] = {}
    for one in scenario.served:
        empty = {"joules": 0.0, "joules_low": 0.0, "joules_high": 0.0, "requests": 0, "output_tokens": 0}
        sums = classes.setdefault(one.cls, empty)
        sums["requests"] += 1
        sums["output_tokens"] += len(one.ticks) if one.output_tokens is None else one.output_tokens
    for name, amount in outcome.by_request.items():
        sums = uj.setdefault(cls_of[name], [0, 0, 0])
        for at, part in enumerate((amount.uj, amount.low_uj, amount.high_uj)):
            sums[at] += part
    for cls, sums in uj.items():
        classes[cls].update(zip(("joules", "joules_low", "joules_high"), map(_joules, sums), strict=True))
    return {
        "by_class": classes,
        "by_request": {name: _joules(amount.uj) for name, amount in outcome.by_request.items()},
        "counter_j": _joules(outcome.counter_uj),
        "idle_j": _joules(outcome.idle_uj),
        "foreign_j": _joules(outcome.foreign_uj),
        "gap_j": _joules(outcome.gap_uj),
        "residual_j": _joules(outcome.residual_uj),
        "measured_j": round(outcome.measured_j, 6),
        "predicted_j": round(outcome.predicted_j, 6),
    }


def _joules(uj: int) -> float:
    return uj / 1e6


def _prices(coefficients: Coefficients) -> dict[str, Any]:
    return {name: value for name, value in asdict(coefficients).items() if name in (*PRICES, "spread", "source")}


def _fitted(found: Attributed, engine: str, fit_on: Sequence[str]) -> dict[str, Any]:
    fit = found.fits[engine]
    return {**_prices(fit.prices()), "windows": fit.windows, "fitted_on": list(fit_on)}


def _by_engine(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Of one engine its figures; of several each one's by its name."""
    return next(iter(figures.values())) if len(figures) == 1 else figures


def show(result: dict[str, Any], out: Console) -> None:
    """The figures for a person: by scenario and class, then the prices.

    `predicted` is how far the prices alone, without the counter, are off for the time in which the engine worked.
    """
    table = Table("scenario", "class", "requests", "J", "J/request", "from", "to", "J/token out")
    for column in table.columns[2:]:
        column.justify = "right"
    for name, scenario in result["scenarios"].items():
        for cls, sums in scenario["by_class"].items():
            table.add_row(name, cls, *_figures(sums))
        for part in ("idle", "foreign", "gap"):
            if scenario[f"{part}_j"]:
                table.add_row(name, part, "", f"{scenario[f'{part}_j']:.1f}", style="dim")
        table.add_row(name, "counter", "", f"{scenario['counter_j']:.1f}", style="bold")
        if scenario["measured_j"]:
            off = 100 * (scenario["predicted_j"] / scenario["measured_j"] - 1)
            table.add_row(name, "predicted", "", f"{off:+.1f} %", style="dim")
        table.add_section()
    out.print(table)
    several = "source" not in result["coefficients"]
    for engine, prices in (result["coefficients"] if several else {"": result["coefficients"]}).items():
        before = result["prior"][engine] if several else result["prior"]
        prefix = f"engine {engine}: " if engine else ""
        figures = ", ".join(f"{prices[name]:.4g} ({before[name]:.4g})" for name in PRICES)
        out.print(
            f"{prefix}joules a step, prompt token, output token, token of context (before): {figures}", soft_wrap=True
        )
        out.print(f"{prefix}{prices['source']}; each may be off by a factor of {prices['spread']:.2f}", soft_wrap=True)


def _figures(sums: dict[str, Any]) -> list[str]:
    requests, tokens = sums["requests"], sums["output_tokens"]
    each = [sums[name] / requests for name in ("joules", "joules_low", "joules_high")]
    per_token = f"{sums['joules'] / tokens:.3f}" if tokens else "-"
    return [str(requests), f"{sums['joules']:.1f}", *(f"{one:.2f}" for one in each), per_token]
