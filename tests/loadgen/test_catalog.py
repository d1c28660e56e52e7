from dataclasses import replace

import pytest

from loadgen.catalog import FOUR, CatalogError, chosen_fields, registered, workload
from loadgen.composite import Composite
from loadgen.search import Search
from loadgen.summarize import Summarize


def test_the_papers_four_are_registered() -> None:
    assert set(FOUR) <= set(registered())


def test_a_workload_is_made_with_what_was_chosen() -> None:
    assert workload("search", "small") == Search.small()
    chosen = chosen_fields("queries=3-5 in_flight=2")
    assert workload("search", "paper", chosen, 2500, 100) == Search(2500, 100, (3, 5), 2)
    assert workload("summarize", chosen={"document_tokens": [3000, 4000]}) == replace(
        Summarize.paper(), document_tokens=(3000, 4000)
    )
    both = workload("composite", "small", {"search.queries": [2, 2]})
    assert both == Composite(Summarize.small(), replace(Search.small(), queries=(2, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: workload("serch"), "no workload is called 'serch'; 'search' would be"),
        (lambda: workload("search", "large"), "small or paper, got 'large'"),
        (lambda: workload("search", chosen={"querys": 3}), "search has no field 'querys'; 'queries' would be"),
        (lambda: workload("composite", chosen={"search.x": 3}), "composite.search has no field 'x'; there are"),
        (lambda: workload("search", chosen={"queries": 3}), r"queries must be like \(2, 8\), got 3"),
        (lambda: workload("search", chosen={"queries": [0, 3]}), "must be a range within 1-64"),
        (lambda: workload("search", input_tokens=10**6), "system_tokens must be within"),
        (lambda: workload("search", chosen={"output_tokens": "many"}), "must be like 800, got 'many'"),
        (lambda: chosen_fields("queries"), "name=value, got 'queries'"),
    ],
)
def test_what_cannot_be_is_refused_with_what_would_be_right(make, message: str) -> None:
    with pytest.raises(CatalogError, match=message):
        make()
