"""Which run a call belongs to, and the headers that say so to the gateway.

The run is kept in one context variable, so that tasks, threads and runs that share a client object stay apart. Clients
are reached where httpx and httpx2 send one request (openai and LangChain stand on one of the two).
"""

import concurrent.futures
import contextlib
import functools
import importlib.machinery
import importlib.util
import logging
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any, NamedTuple, Self

log = logging.getLogger("joulegate")

RUN_HEADER = "X-Workflow-Id"
NAME_HEADER = "X-Workflow-Name"
STEP_HEADER = "X-Workflow-Step"
NODE_HEADER = "X-Workflow-Node"
PARENT_HEADER = "X-Workflow-Parent"
BUDGET_HEADER = "X-Workflow-Budget"
CLIENT_PACKAGES = ("httpx", "httpx2")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "0.0.0.0"})
DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where a URL leads, comparable: the names of this machine's loopback are one host."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, scheme: str, host: str, port: int | None) -> Self:
        scheme, host = scheme.lower(), host.lower()
        return cls(scheme, "localhost" if host in LOOPBACK else host, port or DEFAULT_PORTS.get(scheme, 0))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


@dataclass
class Traffic:
    """What was seen of a run's calls: whether any reached the gateway, with which key, and where others went."""

    tagged: bool = False
    authorization: str | None = field(default=None, repr=False)
    elsewhere: Origin | None = None
    ended: bool = False
    late: bool = False


@dataclass(frozen=True)
class Scope:
    """The place in a run where a call is made: `headers` say it, to the `gateway` alone."""

    gateway: Origin
    headers: Mapping[str, str]
    traffic: Traffic

    @classmethod
    def of_run(
        cls, gateway: Origin, run_id: str, workflow: str, traffic: Traffic, budget_j: float | None = None
    ) -> Self:
        headers = {RUN_HEADER: _checked(RUN_HEADER, run_id), NAME_HEADER: _checked(NAME_HEADER, workflow)}
        if budget_j is not None:
            if not 1e-6 <= budget_j <= 1e12:
                raise ValueError(f"a budget is a number of joules, more than 0, not {budget_j!r}")
            headers[BUDGET_HEADER] = repr(float(budget_j))
        return cls(gateway, headers, traffic)

    def at_step(self, step: str, node: str | None = None, parents: Sequence[str] = ()) -> Self:
        """The same run at a step, with nothing of the step, node and parents that were said before."""
        of_run = (RUN_HEADER, NAME_HEADER, BUDGET_HEADER)
        headers = {name: self.headers[name] for name in of_run if name in self.headers}
        headers[STEP_HEADER] = _checked(STEP_HEADER, step)
        if node is not None:
            headers[NODE_HEADER] = _checked(NODE_HEADER, node)
        if parents:
            headers[PARENT_HEADER] = ",".join(_checked(PARENT_HEADER, parent) for parent in parents)
        return replace(self, headers=headers)


def _checked(header: str, value: str) -> str:
    if not (0 < len(value) <= 200 and value.isascii() and value.isprintable() and value == value.strip()):
        raise ValueError(
            f"{header} takes 1 to 200 printable ASCII characters, not {value[:60]!r} (length {len(value)})"
        )
    if header == PARENT_HEADER and "," in value:
        raise ValueError(f"a parent's name cannot hold a comma: {value!r}")
    return value


current: ContextVar[Scope | None] = ContextVar("joulegate", default=None)


@contextlib.contextmanager
def inside(scope: Scope) -> Iterator[None]:
    token = current.set(scope)
    try:
        yield
    finally:
        # A generator may be finalised in another context, in which the scope was never set: nothing to undo there.
        with contextlib.suppress(ValueError):
            current.reset(token)


@contextlib.contextmanager
def tagged(request: Any) -> Iterator[None]:
    """Give an httpx request the current scope's headers while it is sent, if it goes to the scope's gateway.

    They are taken off again so that neither a redirect to another host nor a second sending of the object carries them.
    """
    scope = current.get()
    if scope is None:
        yield
        return
    traffic, headers = scope.traffic, request.headers
    origin = Origin.of(request.url.scheme, request.url.host, request.url.port)
    if origin != scope.gateway:
        traffic.elsewhere = origin
        yield
        return
    if traffic.ended:
        if not traffic.late:
            traffic.late = True
            log.warning("a call was made after its joulegate run had ended, and is not counted in it: await it inside")
        yield
        return
    mine = scope.headers[RUN_HEADER]
    if headers.get(RUN_HEADER, mine) != mine:  # the caller speaks for another run: our names would mislabel it
        yield
        return
    added = [name for name in scope.headers if name not in headers]
    headers.update({name: scope.headers[name] for name in added})
    traffic.tagged = True
    traffic.authorization = headers.get("Authorization", traffic.authorization)
    try:
        yield
    finally:
        for name in added:
            del headers[name]


def install() -> None:
    """Reach every client of this process. Safe to call often; packages imported later are reached on import."""
    with _installing:
        if not any(isinstance(finder, _TagOnImport) for finder in sys.meta_path):
            sys.meta_path.insert(0, _TagOnImport())
            _carry_into_threads()
            _carry_into_executors()
        for package in CLIENT_PACKAGES:
            if package in sys.modules:
                _tag_clients(sys.modules[package])


_installing = threading.Lock()


class _TagOnImport(MetaPathFinder):
    """Tags a client package's classes when it is imported: an app may import openai only inside its first run."""

    def __init__(self) -> None:
        self._finding: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in CLIENT_PACKAGES or fullname in self._finding:
            return None
        self._finding.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._finding.discard(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_tag(module: ModuleType) -> None:
            execute(module)
            if module.__name__ in CLIENT_PACKAGES:
                _tag_clients(module)

        spec.loader.exec_module = execute_and_tag
        return spec


def _tag_clients(module: ModuleType) -> None:
    # The sending of one request, not `send`: there a redirect's hops cannot be told apart.
    for name, wrap in (("Client", _tag_sync), ("AsyncClient", _tag_async)):
        client = getattr(module, name, None)
        if client is None:  # another thread is still importing the package; the next run finds it complete
            continue
        send = getattr(client, "_send_single_request", None)
        if send is None:
            log.warning("calls of this %s cannot be tagged; send the run's `headers` with them", module.__name__)
        elif not hasattr(send, "_joulegate"):
            wrapped = wrap(send)
            vars(wrapped)["_joulegate"] = True
            client._send_single_request = wrapped


def _tag_sync(send: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(send)
    def send_tagged(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        with tagged(request):
            return send(client, request, *args, **kwargs)

    return send_tagged


def _tag_async(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(send)
    async def send_tagged(client: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        with tagged(request):
            return await send(client, request, *args, **kwargs)

    return send_tagged


def _carry_into_threads() -> None:
    # Only our variable, never the whole context: a new thread that suddenly saw its parent's decimal precision or
    # tracing span would be a change of the app's behaviour.
    start = threading.Thread.start

    @functools.wraps(start)
    def start_in_scope(self: threading.Thread) -> None:
        scope = current.get()
        if scope is not None:
            run = self.run

            def run_in_scope() -> None:
                current.set(scope)
                try:
                    run()
                finally:
                    vars(self).pop("run", None)  # it refers to the thread: a cycle

            self.run = run_in_scope
        start(self)

    threading.Thread.start = start_in_scope


def _carry_into_executors() -> None:
    executor = concurrent.futures.ThreadPoolExecutor
    submit = executor.submit

    @functools.wraps(submit)
    def submit_in_scope(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        scope = current.get()
        if scope is None:
            return submit(self, fn, *args, **kwargs)
        # The scope goes with the work; the worker thread that `submit` may start outlives the run and must not have it.
        token = current.set(None)
        try:
            return submit(self, _call_in_scope, scope, fn, args, kwargs)
        finally:
            current.reset(token)

    executor.submit = submit_in_scope


def _call_in_scope(scope: Scope, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    with inside(scope):
        return fn(*args, **kwargs)
