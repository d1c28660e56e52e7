import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from joulegate.cli import app

AT = 1_800_000_000.0
PARTS = ("idle_j", "foreign_j", "gap_j", "residual_j")


def lines(scenario: str | None, watts: float = 400.0) -> list[dict[str, Any]]:
    """Two classes for three seconds: one decodes all the time, of one a prompt is computed now and then."""
    named = {} if scenario is None else {"scenario": scenario}
    made = [min(600, max(0, 20 * (n - 5))) for n in range(40)]
    counters = [
        {"kind": "counter", "t": AT + n / 10, "energy_mj": 1e6 + watts * 100 * n, "steps": made[n], "prompt": 0}
        | {"gen": made[n], "running": 1, "cached": 0}
        | named
        for n in range(40)
    ]
    ticks = [AT + 0.5 + n / 200 for n in range(600)]
    steady = {"kind": "request", "cls": "steady", "id": "s", "t0": AT + 0.45, "first": ticks[0], "end": ticks[-1]}
    prompts = [
        {
            "kind": "request",
            "cls": "prompts",
            "id": f"p{n}",
            "t0": AT + 1 + n,
            "first": AT + 1.1 + n,
            "end": AT + 1.1 + n,
        }
        | {"prompt": 4000, "cached": 0, "out": 1, "ticks": [AT + 1.1 + n]}
        | named
        for n in range(2)
    ]
    return [*counters, steady | {"prompt": 100, "cached": 0, "out": 600, "ticks": ticks} | named, *prompts]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines("a"), *lines("b", 300.0)]))
    return file


def attribute(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["attribute", *map(str, arguments)])


def test_the_figures_for_a_program(trace: Path) -> None:
    result = attribute(trace, "--json", "--gpu", "NVIDIA H200", "--model", "llama-2-7b")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert set(report) == {"scenarios", "coefficients", "prior"} and set(report["scenarios"]) == {"a", "b"}
    for scenario in report["scenarios"].values():
        assert set(scenario["by_class"]) == {"steady", "prompts"}
        keys = {"joules", "joules_low", "joules_high", "requests", "output_tokens"}
        assert all(set(sums) == keys for sums in scenario["by_class"].values())
        by_request = {name: round(joules * 1e6) for name, joules in scenario["by_request"].items()}
        assert set(by_request) == {"s", "p0", "p1"}
        parts = sum(round(scenario[part] * 1e6) for part in PARTS)
        assert sum(by_request.values()) + parts == round(scenario["counter_j"] * 1e6)
        assert scenario["residual_j"] == 0
        steady, prompts = scenario["by_class"]["steady"], scenario["by_class"]["prompts"]
        assert (steady["requests"], steady["output_tokens"], prompts["requests"]) == (1, 600, 2)
        assert round(prompts["joules"] * 1e6) == by_request["p0"] + by_request["p1"] > 0
        assert prompts["joules_low"] < prompts["joules"] < prompts["joules_high"]
    assert report["scenarios"]["a"]["counter_j"] == pytest.approx(0.4 * 39 * 100)
    assert report["prior"]["source"].startswith("measured on one H200")
    assert set(report["coefficients"]) >= {"step_j", "prompt_j", "output_j", "context_j", "spread", "source"}


def test_prices_are_fitted_on_the_scenarios_that_are_named(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    many = [line for n in range(6) for line in lines(f"cheap{n}", 250.0)]
    file.write_text("".join(json.dumps(line) + "\n" for line in [*many, *lines("dear", 750.0)]))
    cheap = json.loads(attribute(file, "--json", "--fit-on", ",".join(f"cheap{n}" for n in range(6))).stdout)
    both = json.loads(attribute(file, "--json").stdout)
    assert cheap["coefficients"]["fitted_on"] == [f"cheap{n}" for n in range(6)]
    assert cheap["coefficients"]["windows"] > 20
    assert cheap["coefficients"]["step_j"] < both["coefficients"]["step_j"]
    dear = cheap["scenarios"]["dear"]
    assert dear["predicted_j"] < 0.5 * dear["measured_j"], "what was not fitted on is only predicted"


def test_a_trace_without_scenarios_is_one(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines(None)))
    assert list(json.loads(attribute(file, "--json").stdout)["scenarios"]) == ["all"]


def test_several_engines_have_prices_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    named = [line | {"engine": engine, "device": f"{engine}/gpu:0"} for engine in ("e1", "e2") for line in lines(None)]
    ids = [line | ({"id": line["engine"] + line["id"]} if "id" in line else {}) for line in named]
    said = {"kind": "engine", "engine": "e1", "gpu": "NVIDIA H200", "model": "llama-2-7b"}
    file.write_text("".join(json.dumps(line) + "\n" for line in [said, *ids]))
    report = json.loads(attribute(file, "--json").stdout)
    assert set(report["coefficients"]) == set(report["prior"]) == {"e1", "e2"}
    assert report["prior"]["e1"]["source"].startswith("measured") and "unknown" in report["prior"]["e2"]["source"]
    assert report["scenarios"]["all"]["residual_j"] == 0
    assert attribute(file).exit_code == 0


def test_a_person_gets_a_table(trace: Path) -> None:
    result = attribute(trace)
    assert result.exit_code == 0
    for word in ("steady", "prompts", "idle", "counter", "a step"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("content", "arguments", "says"),
    [
        ("", (), "no counter in it"),
        ("{}\nnonsense\n{}\n", (), "line 2: not JSON"),
        (json.dumps({"kind": "counter", "t": 1, "energy_mj": 2}), ("--fit-on", "x"), "no scenario 'x'; it has all"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, content: str, arguments: tuple[str, ...], says: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(content)
    result = attribute(file, *arguments)
    assert result.exit_code == 1 and says in result.stderr and len(result.stderr.splitlines()) == 1
