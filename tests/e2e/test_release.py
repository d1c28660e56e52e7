"""Requests that are held at the gate for company, and what lets them go."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from stage import Engine, Gateway, until


def test_who_is_held_leaves_with_the_next_that_is_not(
    make_gateway: Callable[..., Gateway], make_engine: Callable[..., Engine]
) -> None:
    engine = make_engine()
    config = {
        "engines": [{"name": "e1", "kind": "vllm", "url": engine.url}],
        "workflows": {"patient": {"patience": 100.0}},
        "policy": {"name": "static", "release": {"patient": {"hold_s": 100.0}}},
    }
    gateway = make_gateway(config)

    def ask(workflow: str) -> int:
        return gateway.chat({"x-workflow-name": workflow}).status_code

    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(ask, "patient") for _ in range(2)]
        until(lambda: gateway.metric("joulegate_gate_queued", engine="e1", workflow="patient") == 2)
        assert not engine.log(x_workflow_name="patient") and not any(one.done() for one in held)
        assert ask("hurried") == 200
        assert [one.result() for one in held] == [200, 200]
    assert len(engine.log(x_workflow_name="patient")) == 2
