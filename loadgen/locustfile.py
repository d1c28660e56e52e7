"""Locust users that run the workloads: `locust -f loadgen/locustfile.py --host http://127.0.0.1:8080`.

One user works on one run after the other, closed-loop, or with `--arrivals poisson:2` runs begin when they are due,
however many users there are. What is measured and recorded is what `loadgen.http` does without Locust.

In Locust's statistics `POST summarize/chunk` is one call from its intended start to its last byte, `ttft` the time to
its first text, `itl` the mean time between two tokens and `tokens` how many there were; `WORKFLOW summarize` is a whole
run and `joules` what the gateway says it cost, some seconds later. (Locust shows them all under ms, and its
`Aggregated` line mixes them; do not read it.) A run that the end of the test cuts off is neither done nor failed.
"""

import logging
from dataclasses import replace
from os import environ
from pathlib import Path
from time import perf_counter
from typing import Any

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, Runner, WorkerRunner

from loadgen import catalog
from loadgen.answer import AnswerError
from loadgen.arrivals import Arrivals, Closed, parse
from loadgen.client import MODES, Target
from loadgen.http import PAUSE_AFTER_FAILURE_S, Drive, Listeners
from loadgen.merge import merge
from loadgen.record import RequestRecord, Result, RunRecord, as_bytes, of_bytes, write
from loadgen.replay import Replay
from loadgen.schedule import Load, Schedule, Stream

log = logging.getLogger(__name__)

try:
    REGISTERED = tuple(catalog.registered())
except catalog.CatalogError as error:
    raise SystemExit(str(error)) from None
KEY_VARIABLE = "JOULEGATE_KEY"  # read when needed, not as an option's default, which the web page would show
HOST = "http://127.0.0.1:8080"
DONE, RESULT = "joulegate_done", "joulegate_result"  # what a worker tells its master
FINISH = "joulegate_finish"  # what a master tells its workers
GATHER_S = 60.0

drive: Drive | None = None  # of this process's test; a master has none
results: list[Result | None] = []  # that a master got; None of a worker whose test could not begin
done: set[str] = set()  # workers that have nothing left to do


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    def add(name: str, default: Any, help: str, **more: Any) -> None:
        kind = {} if isinstance(default, bool) else {"type": type(default)}
        parser.add_argument(name, default=default, help=help, **kind, **more)

    add(
        "--workload",
        "all",
        "what to run; 'all' takes the paper's four in turn, run by run",
        choices=[*REGISTERED, "all"],
    )
    add("--size", "small", "small for a CPU, paper for a GPU", choices=list(catalog.SIZES))
    add("--set", "", "fields of the workload, such as: queries=4-8 texts=my-queries.txt")
    add("--input-tokens", 0, "length of what the workload calls its input; 0: its own")
    add("--output-tokens", 0, "most tokens of an answer; 0: the workload's own")
    add("--arrivals", "closed", "closed: each user a run at a time; poisson:RATE, constant:RATE, trace:FILE; recorded")
    add("--think", 0.0, "seconds between two runs of a closed user")
    add("--max-runs", 0, "end after this many runs, over all users and workers; 0 or less: no limit")
    add("--seed", 0, "the same seed plans the same runs")
    add("--model", "", "model to ask for; by default the first that /v1/models lists")
    exact = "prompts as token ids of exact lengths, answers as long as they may be"
    add("--exact-lengths", False, exact, action="store_true")
    mode = "calls: one after the other; nodes: a run's calls at once, the gateway fills answers in; pasted: its like"
    add("--mode", "calls", mode, choices=list(MODES))
    add("--cache-salt", "", "vLLM's cache_salt of every request: what another salt brought is not found in its cache")
    add("--run-name", "", "workflow name to tag runs with, instead of the workload's own")
    add("--api-key", "", f"key of the gateway; also read from ${KEY_VARIABLE}", is_secret=True)
    add("--no-stream", False, "ask for whole answers instead of streams", action="store_true")
    add("--no-joules", False, "do not ask the gateway what runs cost", action="store_true")
    add("--record", "", "file for the records of the load, as JSON lines (see loadgen/record.py)")


@events.init.add_listener
def listen(environment: Environment, runner: Runner, **_: Any) -> None:
    def take(environment: Environment, msg: Any) -> None:
        record = msg.data["record"]
        results.append(of_bytes(record) if record else None)

    if isinstance(runner, MasterRunner):
        runner.register_message(DONE, lambda environment, msg: worker_is_done(environment, msg.node_id))
        runner.register_message(RESULT, take)
    elif isinstance(runner, WorkerRunner):
        runner.register_message(FINISH, lambda environment, msg: runner.stop(), concurrent=True)


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    global drive
    drive = None
    results.clear()
    done.clear()
    options, runner = environment.parsed_options, environment.runner
    assert options is not None and runner is not None
    if isinstance(runner, MasterRunner):
        # Every option goes to the workers, these too: one of n workers has every n-th run.
        options.sharers = [client.id for client in runner.clients.ready]
        options.all_users = users = runner.target_user_count or 0
        if users < len(options.sharers):
            fail(environment, f"{len(options.sharers)} workers need as many users, there are {users}")
        return
    if not isinstance(runner, WorkerRunner):
        options.sharers, options.all_users = [""], runner.target_user_count
    try:
        load = load_of(options)
        sharers: list[str] = options.sharers
        worker = sharers.index(runner.client_id) if isinstance(runner, WorkerRunner) else 0
        schedule = Schedule(load, worker, len(sharers))
        begun = Drive(schedule, target_of(environment), listeners_of(environment), whole=bool(options.record))
        begun.begin(joules=not options.no_joules)
    except AnswerError as error:
        fail(environment, f"{environment.host or HOST}: {error}; start the gateway, or give --model")
        return
    except ValueError as error:
        fail(environment, str(error))
        return
    drive = begun


@events.test_stopping.add_listener
def gather(environment: Environment, **_: Any) -> None:
    """Before a master ends its workers, which it does without waiting for what they have to say."""
    runner = environment.runner
    if isinstance(runner, MasterRunner):
        runner.send_message(FINISH)
        until = perf_counter() + GATHER_S
        while len(results) < runner.worker_count and perf_counter() < until:
            gevent.sleep(0.05)


@events.test_stop.add_listener
def end(environment: Environment, **_: Any) -> None:
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    if isinstance(runner, MasterRunner):
        if known := [result for result in results if result is not None]:
            tell(merge(known), options.record)
        return
    result = None if drive is None else drive.finish()
    if drive is not None:
        outcomes = drive.outcomes
        log.info("%d runs complete, %d failed, %d cut off", outcomes["ok"], outcomes["failed"], outcomes["cut"])
    if isinstance(runner, WorkerRunner):
        runner.send_message(RESULT, {"record": as_bytes(result) if result else b""})
    elif result:
        tell(result, options.record)


class WorkflowUser(User):
    """Works on runs until there are none left."""

    host = HOST
    conducted: Drive | None = None  # of the user who begins the runs of open arrivals

    def on_start(self) -> None:
        self.free_s = 0.0 if drive is None else drive.now()

    @task
    def work(self) -> None:
        if drive is None:  # the test could not begin
            raise StopUser
        arrivals = drive.schedule.load.streams[0].arrivals
        if isinstance(arrivals, Closed):
            self.run_one(drive, arrivals.think_s)
        else:
            self.conduct(drive)

    def run_one(self, drive: Drive, think_s: float) -> None:
        gevent.sleep(max(0.0, self.free_s - drive.now()))
        start = drive.schedule.take(0, self.free_s)
        if start is None:
            drive.runs_out()
            raise StopUser
        run = drive.carry_out(start)
        self.free_s = run.ended_s + (think_s if run.outcome == "ok" else PAUSE_AFTER_FAILURE_S)
        if drive.outcomes.total() == drive.schedule.runs(0):
            end_test(self.environment)

    def conduct(self, drive: Drive) -> None:
        """One user of a process begins all of its runs; the others are there because Locust wants users."""
        if WorkflowUser.conducted is drive:
            gevent.sleep(3600)
            return
        WorkflowUser.conducted = drive
        drive.all_streams()
        end_test(self.environment)
        raise StopUser


def load_of(options: Any) -> Load:
    """What the options ask for. Raises ValueError."""
    names = catalog.FOUR if options.workload == "all" else (options.workload,)
    lengths = (options.input_tokens or None, options.output_tokens or None)
    chosen = catalog.chosen_fields(options.set)
    workloads = tuple(catalog.workload(name, options.size, chosen, *lengths) for name in names)
    arrivals: Arrivals
    if options.arrivals == "closed":
        arrivals = Closed(options.all_users, options.think)
    elif options.arrivals == "recorded" and isinstance(workloads[0], Replay):
        arrivals = workloads[0].arrivals()
    else:
        arrivals = parse(options.arrivals)
        if isinstance(arrivals, Closed):
            raise ValueError("closed users are Locust's own: --users 16 --arrivals closed")
    return Load((Stream(workloads, arrivals, options.max_runs if options.max_runs > 0 else None),), options.seed)


def target_of(environment: Environment) -> Target:
    options = environment.parsed_options
    assert options is not None
    return Target(
        url=environment.host or HOST,
        model=options.model,
        key=options.api_key or environ.get(KEY_VARIABLE),
        stream=not options.no_stream,
        exact=options.exact_lengths,
        mode=options.mode,
        run_name=options.run_name,
        cache_salt=options.cache_salt or None,
    )


def listeners_of(environment: Environment) -> Listeners:
    """Everything that happens as Locust's statistics."""

    def fire(kind: str, name: str, value: float, length: int = 0, error: str | None = None) -> None:
        environment.events.request.fire(
            request_type=kind,
            name=name,
            response_time=value,
            response_length=length,
            exception=None if error is None else AnswerError(error),
            context={},
        )

    def request(one: RequestRecord) -> None:
        name = f"{one.workflow}/{one.step}"
        if one.outcome == "cut":
            return
        fire("POST", name, one.latency_s * 1e3, one.output_tokens or 0, one.error)
        if one.error is not None:
            return
        if one.ttft_s is not None:
            fire("ttft", name, one.ttft_s * 1e3)
        if one.mean_gap_s is not None:
            fire("itl", name, one.mean_gap_s * 1e3)
        if one.output_tokens is not None:
            fire("tokens", name, one.output_tokens)

    def run(one: RunRecord) -> None:
        if one.outcome != "cut":
            error = None if one.outcome == "ok" else "one of its calls failed"
            fire("WORKFLOW", one.workflow, one.latency_s * 1e3, one.output_tokens or 0, error)

    def joules(workflow: str, joules: float) -> None:
        fire("joules", workflow, joules)

    return Listeners(request, run, joules)


def tell(result: Result, file: str) -> None:
    load = result.load
    if load.start_delay_p99_s is not None:
        log.info("requests were sent %.1f ms late (p99)", load.start_delay_p99_s * 1e3)
    for reason in load.reasons:
        log.error("this load is not valid: %s", reason)
    if file:
        write(Path(file), replace(result, load=replace(load, driver="locust")))


def fail(environment: Environment, why: str) -> None:
    log.error(why)
    environment.process_exit_code = 1
    end_test(environment)


def end_test(environment: Environment) -> None:
    """Stop the test, and the process where there is no web page to look at afterwards. A worker asks its master to."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        runner.send_message(DONE)
    elif runner is not None:
        gevent.spawn(runner.stop if environment.web_ui else runner.quit)


def worker_is_done(environment: Environment, worker: str) -> None:
    done.add(worker)
    runner = environment.runner
    if isinstance(runner, MasterRunner) and len(done) >= runner.worker_count:
        end_test(environment)
