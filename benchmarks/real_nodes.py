"""Coding sent as a named DAG against the same runs call by call, on a real engine behind the gateway in `observe`.

    python -m benchmarks.real_nodes http://127.0.0.1:8000 MODEL OUT_DIR [--repeats 10] [--minutes 4.6]

A running vLLM on GPU 0. `calls`: the client waits for each answer and puts it into the prompts that quote it. `nodes`:
it sends all calls of the run at once with placeholders, and the gateway fills the answers in. Plans, texts, order of
messages and lengths of answers are the same; a cache salt of its own for each trial keeps one from finding the other's
prefixes. The two ways take turns, first one and then the other first.

A case is `USERSxRTT`: so many runs at once, by a client that is so many milliseconds away, there and back, for every
call (slept by the client here, half before a request and half after its answer). A trial's seconds end with the last
answer, its joules are the counter's, idle included, between two of its steps around the trial.

Every trial is a line in `trials.jsonl`; `receipts.jsonl` says what the gateway's books have for each of its runs. No
setting of the GPU is touched. `benchmarks/named_dag.py` rehearses it on an emulated host, and makes the table of both.
"""

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import yaml

from benchmarks.real_policies import PORT, SETTLED_S, configuration, gateway, nvml_counter, zeusd_counter
from loadgen.coding import Coding
from loadgen.prompt import about, named_messages, whole_messages
from loadgen.workload import Call, Dispatch, Execution, Run, tags

URL = f"http://127.0.0.1:{PORT}"
MODES = ("calls", "nodes")
CASES = "1x0,1x50,4x0"
REST_S = 0.4  # between trials
# What a model with random weights says is not as many tokens again when it is quoted; held to these words, it is.
WORDS = (
    " the of and to in is that for it as was with be by on not he his but at are this have from or had an they which"
    " one you were all her she there would their we him been has when who will no more if out so up said what its about"
)


@dataclass(frozen=True)
class Case:
    users: int
    rtt_ms: float

    @classmethod
    def of(cls, text: str) -> "Case":
        users, _, rtt_ms = text.partition("x")
        return cls(int(users), float(rtt_ms))


@dataclass(frozen=True)
class Trial:
    case: Case
    repeat: int
    mode: str


@dataclass
class Counted:
    """What the engine counted over a trial."""

    prompt: int = 0
    cached: int = 0
    output: int = 0
    calls: int = 0


def trials(cases: list[Case], repeats: int) -> Iterator[Trial]:
    """All cases in each repeat; who is first changes from repeat to repeat, and from case to case."""
    for repeat in range(repeats):
        for at, case in enumerate(cases):
            ways = MODES if (repeat + at) % 2 == 0 else MODES[::-1]
            yield from (Trial(case, repeat, mode) for mode in ways)


@dataclass
class Client:
    """Sends runs through the gateway; `fields` are those of every request."""

    session: aiohttp.ClientSession
    model: str
    rtt_ms: float
    fields: dict[str, Any]
    counted: Counted = field(default_factory=Counted)

    async def run(self, run: Run, run_id: str, mode: str) -> float:
        """Seconds until its last answer was here."""
        began, execution = time.perf_counter(), Execution(run, at_once=mode == "nodes")
        tasks: set[asyncio.Task[None]] = set()
        while not execution.done:
            for dispatch in execution.take_ready():
                tasks.add(
                    asyncio.create_task(self.call(dispatch, tags(run_id, run.workflow, dispatch), execution, mode))
                )
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        return time.perf_counter() - began

    async def call(self, dispatch: Dispatch, headers: dict[str, str], execution: Execution, mode: str) -> None:
        call = dispatch.call
        prompt = prompt_of(call, execution.outputs, mode)
        body = {"model": self.model, "prompt": prompt, "max_tokens": call.max_tokens, **self.fields}
        await asyncio.sleep(self.rtt_ms / 2e3)
        async with self.session.post(f"{URL}/v1/completions", json=body, headers=headers) as reply:
            data = await reply.read()
            if reply.status != 200 or b"[DONE]" not in data:
                raise RuntimeError(f"{call.node}: {reply.status}: {data[-400:]!r}")
        await asyncio.sleep(self.rtt_ms / 2e3)
        text, usage = read(data)
        self.counted.calls += 1
        self.counted.prompt += usage["prompt_tokens"]
        self.counted.cached += (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.counted.output += usage["completion_tokens"]
        execution.answer(call.node, text)


def prompt_of(call: Call, outputs: dict[str, str], mode: str) -> str:
    """One text, so that an engine without a chat template will do."""
    named, pieces = mode == "nodes", call.prompt
    messages = named_messages(pieces, about) if named else whole_messages(pieces, outputs, about)
    return "\n\n".join(message["content"] for message in messages)


def read(data: bytes) -> tuple[str, dict[str, Any]]:
    """Text and usage of a stream of completions."""
    text, usage = "", {}
    for line in data.splitlines():
        if line.startswith(b"data:") and b"[DONE]" not in line:
            chunk = json.loads(line[5:])
            text += "".join(choice["text"] for choice in chunk.get("choices") or [])
            usage = chunk.get("usage") or usage
    return text, usage


async def edge(counter_j: Callable[[], float]) -> float:
    """The counter just after it moved: between its steps it stands still, for a tenth of a second on some cards."""
    before = counter_j()
    until = time.perf_counter() + 1.0
    while time.perf_counter() < until:
        await asyncio.sleep(0.003)
        if (now := counter_j()) != before:
            return now
    return before


async def vocabulary(session: aiohttp.ClientSession, engine: str, model: str) -> list[int] | None:
    """The ids of `WORDS`; None where one is not a token of its own, or the engine cannot be held to them."""
    body = {"model": model, "prompt": WORDS[1:], "add_special_tokens": False}
    async with session.post(f"{engine}/tokenize", json=body) as reply:
        ids = (await reply.json())["tokens"] if reply.status == 200 else []
    if len(ids) != WORDS.count(" "):
        return None
    asked = {"model": model, "prompt": "the", "max_tokens": 2, "allowed_token_ids": ids}
    async with session.post(f"{engine}/v1/completions", json=asked) as reply:
        return ids if reply.status == 200 else None


@dataclass
class Bench:
    session: aiohttp.ClientSession
    model: str
    coding: Coding
    counter_j: Callable[[], float]
    fields: dict[str, Any]

    async def trial(self, trial: Trial) -> dict[str, Any]:
        case = trial.case
        plans = [self.coding.plan(Random(f"{case} {trial.repeat} {user}")) for user in range(case.users)]
        names = [f"{trial.mode}-{uuid.uuid4().hex}" for _ in plans]
        salted = self.fields | {"cache_salt": uuid.uuid4().hex}
        client = Client(self.session, self.model, case.rtt_ms, salted)
        before_j = await edge(self.counter_j)
        began = time.perf_counter()
        runs = zip(plans, names, strict=True)
        latency_s = await asyncio.gather(*(client.run(plan, name, trial.mode) for plan, name in runs))
        seconds = time.perf_counter() - began
        joules = await edge(self.counter_j) - before_j
        counted = client.counted
        return {
            "users": case.users,
            "rtt_ms": case.rtt_ms,
            "repeat": trial.repeat,
            "mode": trial.mode,
            "runs": names,
            "calls": counted.calls,
            "seconds": round(seconds, 4),
            "latency_s": [round(one, 4) for one in latency_s],
            "joules": round(joules, 3),
            "j_per_run": round(joules / case.users, 3),
            "prompt_tokens": counted.prompt,
            "cached_tokens": counted.cached,
            "output_tokens": counted.output,
        }

    async def receipts(self, names: list[str]) -> list[dict[str, Any]]:
        """What the books have for each run."""
        found: list[dict[str, Any]] = []
        for name in names:
            async with self.session.get(f"{URL}/energy/runs/{name}") as reply:
                said = await reply.json() if reply.status == 200 else {}
            found.append({"run": name} | {key: said.get(key) for key in ("joules", "quality", "settled")})
        return found


async def measure(options: argparse.Namespace) -> None:
    """Carry all of it out; `options` are those of the command line."""
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    config = configuration(options)
    if options.in_flight:
        config["limits"] = {"in_flight": options.in_flight}
    config["ledger"]["path"] = str(Path(options.scratch or out) / "ledger.sqlite")
    (out / "joulegate.yaml").write_text(yaml.safe_dump(config))
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        fields = {"ignore_eos": True, "temperature": 0.0, "stream": True, "stream_options": {"include_usage": True}}
        words = await vocabulary(session, options.engine, options.model)
        if words is not None:
            fields["allowed_token_ids"] = words
        counter_j = zeusd_counter(options.zeusd) if options.zeusd else nvml_counter()
        coding = Coding.paper().sized(options.role_tokens, options.output_tokens)
        bench = Bench(session, options.model, coding, counter_j, fields)
        about_it = {"coding": vars(coding), "words_only": words is not None, "in_flight": options.in_flight}
        (out / "about.json").write_text(json.dumps(about_it, indent=1))
        async with gateway(session, out):
            for mode in MODES:  # connections, caches and the tokenizer are warm from here on
                await bench.trial(Trial(Case(1, 0.0), -1, mode))
            names: list[str] = []
            with (out / "trials.jsonl").open("w") as lines:
                longest_s = 0.0
                for trial in trials(options.cases, options.repeats):
                    if time.monotonic() + longest_s + SETTLED_S > ends:
                        print("out of time before", trial, flush=True)
                        break
                    began = time.monotonic()
                    row = await bench.trial(trial)
                    names += row["runs"]
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
                    shown = (
                        "users",
                        "rtt_ms",
                        "repeat",
                        "mode",
                        "seconds",
                        "j_per_run",
                        "prompt_tokens",
                        "output_tokens",
                    )
                    print(*(row[key] for key in shown), flush=True)
                    await asyncio.sleep(REST_S)
                    longest_s = max(longest_s, time.monotonic() - began)
            await asyncio.sleep(SETTLED_S)
            receipts = await bench.receipts(names)
            (out / "receipts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in receipts))


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("engine")
    found.add_argument("model")
    found.add_argument("out", type=Path)
    found.add_argument("--repeats", type=int, default=10)
    found.add_argument("--cases", type=lambda text: [Case.of(one) for one in text.split(",")], default=CASES)
    found.add_argument("--output-tokens", type=int, default=224, help="of the engineers; the other roles have half")
    found.add_argument("--role-tokens", type=int, default=400, help="of each role's standing instructions")
    found.add_argument("--in-flight", type=int, default=0, help="of the gateway's gate; 0: no limit")
    found.add_argument("--minutes", type=float, default=4.6, help="no trial begins that would end later")
    found.add_argument("--scratch", default="", help="folder for the ledger, where it should not be in OUT_DIR")
    found.add_argument("--zeusd", default="", help="host:port of an emulated host's zeusd, to rehearse")
    return found


if __name__ == "__main__":
    asyncio.run(measure(parser().parse_args()))
