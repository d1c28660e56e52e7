"""What a step and a token cost before anything was fitted: coefficients per device × model.

Known pairs come from `priors.yaml`, measured; any other pair is scaled from the reference by published dimensions, and
says so: joules a step with the bytes of weights over memory bandwidth, joules a prompt token with the weights over
arithmetic rate, each times the board's power (a roofline at equal efficiency).
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Prices of work: joules (`_j`) and seconds (`_s`) a step, uncached prompt token, output token, context token.

    `spread` is how far each price may be off, as a factor: it makes the band. `source` says where they come from.
    """

    step_j: float
    prompt_j: float
    output_j: float
    context_j: float
    step_s: float
    prompt_s: float
    spread: float
    source: str


@cache
def _tables() -> dict[str, Any]:
    return yaml.safe_load((Path(__file__).parent / "priors.yaml").read_text())


def prior(device_model: str, model: str) -> Coefficients:
    """Coefficients for a device (its name, as "NVIDIA H200") and a served model (as "meta-llama/Llama-2-7b-hf")."""
    tables = _tables()
    for known in tables["measured"]:
        if re.search(known["device"], device_model, re.I) and re.search(known["model"], model, re.I):
            return Coefficients(**known["coefficients"], source=known["source"])
    reference = tables["measured"][0]
    base = Coefficients(**reference["coefficients"], source="")
    device = _find(tables["devices"], device_model)
    size = _parameters(model) or None
    own, its = device or tables["reference_device"], tables["reference_device"]
    weights = (size or tables["reference_parameters"]) / tables["reference_parameters"]
    power = own["watts"] / its["watts"]
    memory_s = weights * its["gb_s"] / own["gb_s"]
    compute_s = weights * its["tflops"] / own["tflops"]
    guesses = [f"device {device_model!r}"] * (device is None) + [f"model {model!r}"] * (size is None)
    unknown = f"; unknown: {', '.join(guesses)}" if guesses else ""
    return Coefficients(
        step_j=base.step_j * memory_s * power,
        prompt_j=base.prompt_j * compute_s * power,
        output_j=base.output_j * compute_s * power,
        context_j=base.context_j * (its["gb_s"] / own["gb_s"]) * power * weights ** (2 / 3),
        step_s=base.step_s * memory_s,
        prompt_s=base.prompt_s * compute_s,
        spread=2.0,
        source=f"scaled from {reference['name']}{unknown}",
    )


def _find(table: list[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in table if re.search(row["match"], name, re.I)), None)


def _parameters(model: str) -> float | None:
    """Billions of parameters, as model names state them: "Llama-2-7b", "qwen2.5-0.5B", "SmolLM2-135M"."""
    match = re.search(r"(?<![a-z0-9.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model, re.I)
    if not match:
        return None
    return float(match[1]) / (1000 if match[2].lower() == "m" else 1)
