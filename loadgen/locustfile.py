"""Locust users that run the workloads: `locust -f loadgen/locustfile.py --host http://127.0.0.1:8080`.

One user works on one run after the other, closed-loop: each call goes out as soon as the answers that it waits for are
there. In Locust's statistics `POST summarize/chunk` is one call from first byte out to last byte in, `ttft` the time to
its first text, and `WORKFLOW summarize` a whole run. (The `Aggregated` line mixes the three; do not read it.) A run
that the end of the test cuts off counts as neither done nor failed; those of its calls that were answered do count.
"""

import json
import logging
from dataclasses import dataclass
from importlib.metadata import entry_points
from os import environ
from time import perf_counter
from typing import Any
from uuid import uuid4

import gevent
from gevent.lock import Semaphore
from gevent.pool import Group
from gevent.queue import Queue
from locust import FastHttpUser, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.env import Environment
from locust.exception import StopUser
from locust.runners import MasterRunner, WorkerRunner

from loadgen.answer import AnswerError, StreamedAnswer, model_ids, refusal, whole_answer
from loadgen.arrivals import Closed
from loadgen.schedule import Load, Schedule, Stream
from loadgen.workload import Dispatch, Execution, Run, Workload, tags

log = logging.getLogger(__name__)

REGISTERED = {entry.name: entry for entry in sorted(entry_points(group="joulegate.workloads"))}
if not REGISTERED:
    raise SystemExit("no workload is registered: install joulegate first, for instance with `pip install -e .`")
KEY_VARIABLE = "JOULEGATE_KEY"  # read when needed, not as an option's default, which the web page would show
TEMPERATURE, TOP_P = 0.7, 1.0  # the paper's
PAUSE_AFTER_FAILURE_S = 1.0  # a gateway that is down must not be hammered


@dataclass
class Test:
    """What the users of one test share."""

    schedule: Schedule
    model: str
    most: int | None
    complete: int = 0
    failed: int = 0
    cut: int = 0
    ending: bool = False


current: Test | None = None
model_lookup = Semaphore()


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    parser.add_argument(
        "--workload",
        choices=[*REGISTERED, "all"],
        default="all",
        help="what to run; 'all' takes the registered workloads in turn, run by run",
    )
    parser.add_argument("--size", choices=["small", "paper"], default="small", help="small for a CPU, paper for a GPU")
    parser.add_argument("--model", default="", help="model to ask for; by default the first that /v1/models lists")
    parser.add_argument("--seed", type=int, default=0, help="the same seed plans the same runs")
    parser.add_argument(
        "--max-runs",
        type=int,
        default=0,
        help="end after this many runs over all users of this process; 0 or less: no limit",
    )
    parser.add_argument("--run-name", default="", help="workflow name to tag runs with, instead of the workload's own")
    parser.add_argument(
        "--api-key", default="", is_secret=True, help=f"key of the gateway; also read from ${KEY_VARIABLE}"
    )
    parser.add_argument("--no-stream", action="store_true", help="ask for whole answers instead of streams")


@events.test_start.add_listener
def begin(environment: Environment, **_: Any) -> None:
    global current
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    if isinstance(runner, MasterRunner):  # has no users of its own
        return
    # Workers must not all plan the same runs: an engine would find the prompts of one in the cache of the other.
    seed = f"{options.seed} worker {runner.worker_index}" if isinstance(runner, WorkerRunner) else options.seed
    most = options.max_runs if options.max_runs > 0 else None
    names = list(REGISTERED) if options.workload == "all" else [options.workload]
    workloads: tuple[Workload, ...] = tuple(getattr(REGISTERED[name].load(), options.size)() for name in names)
    current = Test(Schedule(Load((Stream(workloads, Closed(1), most),), seed)), options.model, most)


@events.test_stop.add_listener
def summarize_test(environment: Environment, **_: Any) -> None:
    if current is not None:
        log.info("%d runs complete, %d failed, %d cut off", current.complete, current.failed, current.cut)


class WorkflowUser(FastHttpUser):
    host = "http://127.0.0.1:8080"
    network_timeout = 600.0  # a request may queue for minutes before its first byte
    concurrency = 64  # parallel calls of one run

    def on_start(self) -> None:
        assert current is not None and self.environment.parsed_options is not None
        self.test = current
        self.options = self.environment.parsed_options
        key = self.options.api_key or environ.get(KEY_VARIABLE)
        self.authorization = {"Authorization": f"Bearer {key}"} if key else {}

    def first_model(self) -> str:
        """The first model that the gateway lists. Ends the test when there is none."""
        with self.client.get("/v1/models", headers=self.authorization, catch_response=True) as response:
            try:
                if models := model_ids(body_of(response)):
                    return models[0]
                raise AnswerError("no model is listed")
            except AnswerError as error:
                response.failure(error)
                log.error("%s/v1/models: %s; start the gateway, or give --model", self.host, error)
        self.end_test()
        raise StopUser

    @task
    def run_one(self) -> None:
        with model_lookup:
            if self.test.ending:
                raise StopUser
            self.test.model = self.test.model or self.first_model()
        start = self.test.schedule.take(0, 0.0)
        if start is None:
            raise StopUser
        run = self.test.schedule.plan(start)
        workflow = self.options.run_name or run.workflow
        started = perf_counter()
        error: Exception | None = None
        size = 0
        try:
            size = self.carry_out(run, workflow)
            self.test.complete += 1
        except Exception as failure:  # a fault of ours too must count as a run, or --max-runs would never be reached
            error = failure
            self.test.failed += 1
            log.warning("%s failed: %s", workflow, error, exc_info=not isinstance(error, AnswerError))
        except gevent.GreenletExit:
            self.test.cut += 1
            raise
        self.environment.events.request.fire(
            request_type="WORKFLOW",
            name=workflow,
            response_time=(perf_counter() - started) * 1000,
            response_length=size,
            exception=error,
            context={},
        )
        if self.test.complete + self.test.failed == self.test.most:
            self.end_test()
        elif error:
            gevent.sleep(PAUSE_AFTER_FAILURE_S)

    def carry_out(self, run: Run, workflow: str) -> int:
        """Send every call of a run, in parallel where the plan allows it, and return the length of all answers.

        Raises AnswerError at the first call that fails; those still in flight are dropped then.
        """
        run_id = f"{workflow}-{uuid4().hex}"
        execution = Execution(run)
        answers: Queue[tuple[str, str | Exception]] = Queue()
        calls = Group()
        try:
            while not execution.done:
                for dispatch in execution.take_ready():
                    calls.spawn(self.call, dispatch, tags(run_id, workflow, dispatch), execution, answers)
                node, answer = answers.get()
                if isinstance(answer, Exception):
                    raise answer
                execution.answer(node, answer)
        finally:
            calls.kill()
        return sum(len(text) for text in execution.outputs.values())

    def call(
        self,
        dispatch: Dispatch,
        headers: dict[str, str],
        execution: Execution,
        answers: "Queue[tuple[str, str | Exception]]",
    ) -> None:
        try:
            answers.put((dispatch.call.node, self.ask(dispatch, headers, execution)))
        except Exception as error:  # whatever it is, the run's own greenlet has to see it, or it would wait for ever
            answers.put((dispatch.call.node, error))

    def ask(self, dispatch: Dispatch, headers: dict[str, str], execution: Execution) -> str:
        """Send one call and return its answer. Raises AnswerError."""
        call = dispatch.call
        name = f"{headers['X-Workflow-Name']}/{call.step}"
        stream = not self.options.no_stream
        body = {
            "model": self.test.model,
            "messages": call.messages(execution.outputs),
            "max_tokens": call.max_tokens,
            "temperature": TEMPERATURE,
            "top_p": TOP_P,
            "stream": stream,
        }
        headers = {
            **headers,
            **self.authorization,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "Connection": "close",  # servers drop idle connections after seconds, and a POST that meets this is lost
        }
        started = perf_counter()
        with self.client.post(
            "/v1/chat/completions",
            data=json.dumps(body),
            name=name,
            headers=headers,
            stream=True,
            catch_response=True,
        ) as response:
            try:
                text = self.read_stream(response, name, started) if stream else whole_answer(body_of(response))
                response.success()
            except AnswerError as error:
                response.failure(error)
                raise
            finally:
                response.request_meta["response_time"] = (perf_counter() - started) * 1000
            response.request_meta["response_length"] = len(text)
            return text

    def read_stream(self, response: ResponseContextManager, name: str, started: float) -> str:
        if response.status_code != 200:
            body_of(response)
        answer = StreamedAnswer()
        first = True
        while not answer.done and (line := line_of(response)):
            answer.feed(line)
            if first and answer.text:
                first = False
                self.environment.events.request.fire(
                    request_type="ttft",
                    name=name,
                    response_time=(perf_counter() - started) * 1000,
                    response_length=0,
                    exception=None,
                    context={},
                )
        text = answer.close()
        body_of(response)  # to its end, so that the connection is let go
        return text

    def end_test(self) -> None:
        """Stop the test, and the process where there is no web page to look at afterwards."""
        self.test.ending = True
        runner = self.environment.runner
        if runner is None or isinstance(runner, WorkerRunner):  # a worker's test is the master's to end
            return
        gevent.spawn(runner.stop if self.environment.web_ui else runner.quit)


def line_of(response: ResponseContextManager) -> bytes:
    """The next line as it comes, or nothing at the end. Raises AnswerError when the connection breaks."""
    try:
        return response.stream.readline(b"\n")
    except FAILURE_EXCEPTIONS as error:
        raise AnswerError(f"the connection broke: {error or type(error).__name__}") from None


def body_of(response: ResponseContextManager) -> bytes:
    """What is left of a reply. Raises AnswerError for no reply, for one that breaks off and for an error status."""
    if response.status_code == 0:
        raise AnswerError(f"no reply: {getattr(response, 'error', None) or 'connection failed'}")
    try:
        body = response.content or b""
    except FAILURE_EXCEPTIONS as error:
        raise AnswerError(f"the connection broke: {error or type(error).__name__}") from None
    if response.status_code != 200:
        raise refusal(response.status_code, body)
    return body
