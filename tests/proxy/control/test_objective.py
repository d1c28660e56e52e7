from policies.interface import Objective, Prices
from proxy.config import Workflow
from proxy.control.learner import Isolated, Lately
from proxy.control.objective import isolated, objective

PRICES = Prices(2.0, 0.016, 0.025, 0.00007, step_s=0.01, prompt_s=0.0001, spread=1.2)


def test_seconds_are_taken_as_they_are() -> None:
    asked = Workflow.model_validate({"slo": {"ttft_p95": 2, "run_p95": "20"}, "patience": 3})
    assert objective(asked, Isolated()) == Objective(3.0, 2.0, None, 20.0)


def test_a_multiple_is_of_what_it_takes_alone() -> None:
    asked = Workflow.model_validate({"slo": {"ttft_p95": "5x isolated", "itl_p95": "2.5 x isolated"}})
    assert objective(asked, Isolated(0.1, 0.02)) == Objective(0.0, 0.5, 0.05, None)
    assert objective(asked, Isolated()) == Objective(), "unknown so far, so it binds nobody"


def test_what_it_takes_alone_is_given_or_seen_or_priced() -> None:
    workflow = Workflow.model_validate({"isolated": {"ttft": 0.3}})
    lately = Lately(prompt_tokens=1000.0, output_tokens=100.0, depth=2.0)
    seen = Isolated(ttft_s=0.2, itl_s=0.015)
    assert isolated(workflow, seen, lately, PRICES) == Isolated(0.3, 0.015, 2 * (0.1 + 0.01 + 1.0))
    assert isolated(workflow, seen, Lately(), PRICES) == Isolated(0.3, 0.015, None)
    assert isolated(Workflow(), Isolated(), lately, None) == Isolated()
