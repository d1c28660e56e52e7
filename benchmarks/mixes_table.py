"""What a recorded run of `real_mixes.py` shows: joules a request by class and mix, beside bounds and other methods.

    python -m benchmarks.mixes_table docs/results/h200/attribution/trace.jsonl.gz > table.md

Bounds: a request costs at least what its own tokens add (no share of any step), and at most what it costs alone.
"""

import gzip
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Request = dict[str, Any]


def attributed(trace: Path, fit_on: list[str]) -> Any:
    """What `joulegate attribute` makes of the trace with prices fitted on some of its scenarios."""
    command = [sys.executable, "-m", "joulegate", "attribute", str(trace), "--json", "--fit-on", ",".join(fit_on)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def requests_of(trace: Path) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = defaultdict(list)
    with gzip.open(trace, "rt") as lines:
        for line in map(json.loads, lines):
            if line["kind"] == "request":
                found[line["scenario"]].append(line)
    return found


def tokens(request: Request) -> tuple[float, float, float]:
    """Uncached prompt tokens, output tokens, and the context that these read."""
    uncached = request["prompt"] - (request["cached"] or 0)
    return uncached, request["out"], request["out"] * (request["prompt"] + request["out"] / 2)


def marginal_j(request: Request, prices: dict[str, float]) -> float:
    uncached, output, context = tokens(request)
    return prices["prompt_j"] * uncached + prices["output_j"] * output + prices["context_j"] * context


def shared(requests: list[Request], joules: float, weight: dict[str, float]) -> dict[str, float]:
    """Joules a request by class, shared in proportion to a weight of each request."""
    total, sums, counts = sum(weight.values()), defaultdict(float), defaultdict(int)
    for request in requests:
        sums[request["cls"]] += joules * weight[request["id"]] / total
        counts[request["cls"]] += 1
    return {name: sums[name] / counts[name] for name in sums}


def whole_gpu(requests: list[Request], joules: float) -> dict[str, float]:
    """Every request is charged all that the GPU drew while it was there: what one meter a request would say."""
    span = max(r["end"] for r in requests) - min(r["t0"] for r in requests)
    sums, counts = defaultdict(float), defaultdict(int)
    for request in requests:
        sums[request["cls"]] += joules * (request["end"] - request["t0"]) / span
        counts[request["cls"]] += 1
    return {name: sums[name] / counts[name] for name in sums}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def main(trace: Path) -> None:
    requests = requests_of(trace)
    alone = [name for name in requests if len({r["cls"] for r in requests[name]}) == 1]
    mixes = [name for name in requests if name not in alone]
    by_all, on_mixes, on_alone = (attributed(trace, names) for names in (list(requests), mixes, alone))
    solo = {requests[name][0]["cls"]: name for name in alone if name.endswith("-1")}
    print("| scenario | class | requests | marginal | **J a request** | band | alone | in bounds |")
    print("|---|---|---|---|---|---|---|---|")
    for name in [*alone, *mixes]:
        for cls, found in by_all["scenarios"][name]["by_class"].items():
            count = found["requests"]
            own = [r for r in requests[name] if r["cls"] == cls]
            low = mean([marginal_j(r, by_all["coefficients"]) for r in own])
            one = by_all["scenarios"][solo[cls]]["by_class"][cls]
            high, joules = one["joules"] / one["requests"], found["joules"] / count
            band = f"{found['joules_low'] / count:.1f} – {found['joules_high'] / count:.1f}"
            fits = "yes" if low <= joules <= high * 1.001 else "NO"
            print(f"| {name} | {cls} | {count} | {low:.1f} | **{joules:.1f}** | {band} | {high:.1f} | {fits} |")
    print("\n| predicted from prices fitted on the others | measured J | predicted J | off |\n|---|---|---|---|")
    for names, fit in ((alone, on_mixes), (mixes, on_alone)):
        for name in names:
            found = fit["scenarios"][name]
            off = found["predicted_j"] / found["measured_j"] - 1
            print(f"| {name} | {found['measured_j']:.0f} | {found['predicted_j']:.0f} | {100 * off:+.1f} % |")
    print("\n| J a request | class | ours | tokens | output tokens | time | whole GPU |\n|---|---|---|---|---|---|---|")
    for name in mixes:
        all_ = requests[name]
        joules = sum(found["joules"] for found in by_all["scenarios"][name]["by_class"].values())
        others = (
            shared(all_, joules, {r["id"]: r["prompt"] + r["out"] for r in all_}),
            shared(all_, joules, {r["id"]: r["out"] for r in all_}),
            shared(all_, joules, {r["id"]: r["end"] - r["t0"] for r in all_}),
            whole_gpu(all_, joules),
        )
        for cls, found in by_all["scenarios"][name]["by_class"].items():
            row = " | ".join(f"{other[cls]:.1f}" for other in others)
            print(f"| {name} | {cls} | **{found['joules'] / found['requests']:.1f}** | {row} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
