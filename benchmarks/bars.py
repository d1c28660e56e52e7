"""The bars that the gateway has to meet, and whether it did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measure import Soak, Turn, Waves
from benchmarks.targets import DIRECT, GATEWAY, LITELLM, ROUTER

# Only these are differences to the direct connection; CPU is each server's own.
_ADDED = ("latency_p50_ms", "latency_p99_ms", "itl_p50_ms", "itl_p99_ms")

MOST_MS_ADDED = 0.6
MOST_ITL_MS_ADDED = 5.0
MOST_KB_A_STREAM = 60.0
MOST_GROWTH = 1.05


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar. `value` and `met` are null where it was not measured; `note` says against what, or why not."""

    what: str
    limit: str
    value: float | None
    met: bool | None
    note: str = ""


def summarize(turns: Mapping[str, Sequence[Turn]]) -> dict[str, Turn]:
    """The median of every figure over a target's rounds; what is `added_` is taken round by round, then the median."""
    summary: dict[str, Turn] = {}
    for name, rounds in turns.items():
        figures = {figure: median(turn[figure] for turn in rounds) for figure in rounds[0]}
        figures["failures"] = sum(turn["failures"] for turn in rounds)
        if name != DIRECT:
            for figure in _ADDED:
                pairs = zip(rounds, turns[DIRECT], strict=False)
                figures[f"added_{figure}"] = median(through[figure] - direct[figure] for through, direct in pairs)
        summary[name] = figures
    return summary


def check(summary: Mapping[str, Turn], waves: Waves | None, soak: Soak | None) -> list[Bar]:
    """Every bar, in the order in which they were set; those that were not measured too."""
    own = summary[GATEWAY]
    return [
        Bar("requests and streams that failed", "0", own["failures"], own["failures"] == 0),
        _router("CPU a request", "cpu_us_request", summary, to_router=2.0, to_stub=4.0),
        _litellm("CPU a request", "cpu_us_request", summary, 1 / 30),
        _router("CPU a streamed chunk", "cpu_us_chunk", summary, to_router=1.3, to_stub=2.2),
        _litellm("CPU a streamed chunk", "cpu_us_chunk", summary, 1 / 80),
        _most("added latency, one client, p50 (ms)", MOST_MS_ADDED, own["added_latency_p50_ms"]),
        _most("added inter-token latency, 64 paced streams, p99 (ms)", MOST_ITL_MS_ADDED, own["added_itl_p99_ms"]),
        *_memory(waves),
        _steady(soak),
    ]


def _most(what: str, limit: float, value: float, note: str = "") -> Bar:
    return Bar(what, f"<= {limit:g}", value, value <= limit, note)


def _router(what: str, figure: str, summary: Mapping[str, Turn], to_router: float, to_stub: float) -> Bar:
    peer, limit = (ROUTER, to_router) if ROUTER in summary else (DIRECT, to_stub)
    named = "vllm-router's" if peer == ROUTER else "the stub's"
    mine, other = summary[GATEWAY][figure], summary[peer][figure]
    return _most(f"{what}, times {named}", limit, mine / other, f"{mine:.1f} / {other:.1f} µs")


def _litellm(what: str, figure: str, summary: Mapping[str, Turn], limit: float) -> Bar:
    named, bar = f"{what}, times LiteLLM's", f"< 1/{1 / limit:.0f}"
    if LITELLM not in summary:
        return Bar(named, bar, None, None, "LiteLLM was not measured")
    mine, other = summary[GATEWAY][figure], summary[LITELLM][figure]
    return Bar(named, bar, mine / other, mine / other < limit, f"1/{other / mine:.0f}: {mine:.1f} / {other:.1f} µs")


def _memory(waves: Waves | None) -> list[Bar]:
    failed, rss, third = "streams that failed in three waves", "RSS a stream (kB)", "peak RSS, third wave to first"
    if waves is None:
        return [Bar(what, limit, None, None, "not measured") for what, limit in ((failed, "0"), (rss, "< 60"))] + [
            Bar(third, "<= 1.05", None, None, "not measured")
        ]
    count, kb = float(len(waves.failures)), waves.kb_a_stream
    return [
        Bar(failed, "0", count, count == 0, f"{len(waves.peak_mib)} x {waves.streams} streams"),
        Bar(rss, f"< {MOST_KB_A_STREAM:g}", kb, kb < MOST_KB_A_STREAM),
        _most(third, MOST_GROWTH, waves.third_to_first, " / ".join(f"{mib:.0f}" for mib in waves.peak_mib) + " MiB"),
    ]


def _steady(soak: Soak | None) -> Bar:
    what, limit = "RSS after all requests to RSS after the first stretch", f"<= {MOST_GROWTH:g}"
    if soak is None or len(soak.rss_mib) < 2:
        return Bar(what, limit, None, None, "not measured (--soak)")
    met = soak.growth <= MOST_GROWTH and not soak.failures
    first, last = soak.rss_mib[0], soak.rss_mib[-1]
    note = f"{first:.0f} MiB after {soak.every:,}, {last:.0f} MiB after {soak.requests:,}; {len(soak.failures)} failed"
    return Bar(what, limit, soak.growth, met, note)
