"""The workloads: the same seed plans the same run, and shapes are those of the paper."""

import tomllib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen import corpus
from loadgen.coding import Coding
from loadgen.composite import Composite
from loadgen.own import OwnTextsError
from loadgen.prompt import about_tokens
from loadgen.replay import Replay
from loadgen.request import Request
from loadgen.search import PARTS, Search, all_queries, system_prompt
from loadgen.summarize import Summarize
from loadgen.workload import Call, Message, Run, Workload

ALL = [Summarize, Search, Coding, Composite, Request]
SIZES = ["paper", "small"]
seeds = st.integers(0, 2**32)


class OnlyParents(Mapping[str, str]):
    """Answers of a call's parents as long as they may be; reading any other answer is a KeyError."""

    def __init__(self, run: Run, call: Call) -> None:
        limits = {other.node: other.max_tokens for other in run.calls}
        self._answers = {node: f"<{node}>".ljust(limits[node] * corpus.CHARS_PER_TOKEN, ".") for node in call.parents}

    def __getitem__(self, node: str) -> str:
        return self._answers[node]

    def __iter__(self):
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


def prompts(run: Run) -> dict[str, list[Message]]:
    return {call.node: call.messages(OnlyParents(run, call)) for call in run.calls}


def text_of(messages: list[Message]) -> str:
    return "\n".join(message["content"] for message in messages)


def sized(kind: type[Workload], size: str) -> Workload:
    return getattr(kind, size)()


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_equal_seeds_plan_equal_runs(kind: type[Workload], size: str, seed: int) -> None:
    first, second = (sized(kind, size).plan(Random(seed)) for _ in range(2))
    assert first.workflow == kind.name
    assert [(c.node, c.step, c.max_tokens, c.parents, c.after) for c in first.calls] == [
        (c.node, c.step, c.max_tokens, c.parents, c.after) for c in second.calls
    ]
    assert prompts(first) == prompts(second)


@pytest.mark.parametrize("kind", ALL)
def test_other_seeds_plan_other_runs(kind: type[Workload]) -> None:
    planned = {repr(prompts(sized(kind, "small").plan(Random(seed)))) for seed in range(20)}
    assert len(planned) > 3


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize(("size", "context_tokens"), [("paper", 4096), ("small", 512)])
@settings(max_examples=15, deadline=None)
@given(seed=seeds)
def test_a_call_quotes_its_parents_and_fits_the_context(
    kind: type[Workload], size: str, context_tokens: int, seed: int
) -> None:
    run = sized(kind, size).plan(Random(seed))
    limits = {call.node: call.max_tokens for call in run.calls}
    for node, messages in prompts(run).items():
        text = text_of(messages)
        assert corpus.tokens(text) + limits[node] <= context_tokens
        parents = next(call.parents for call in run.calls if call.node == node)
        assert all(f"<{parent}>" in text for parent in parents)
        assert [message["role"] for message in messages] == (["user"] if kind is Request else ["system", "user"])


@given(seed=seeds)
@settings(max_examples=50, deadline=None)
def test_summarization_is_one_chain_over_the_whole_document(seed: int) -> None:
    workload = Summarize.paper()
    run = workload.plan(Random(seed))
    assert 2 <= len(run.calls) <= 40
    for previous, call in zip((None, *run.calls), run.calls, strict=False):
        assert call.parents == ((previous.node,) if previous else ())
        assert call.step == "chunk" and 25 <= call.max_tokens <= 100
    rng = Random(seed)
    sentences = corpus.document(rng.randrange(workload.documents), rng.randint(*workload.document_tokens))
    text = [text_of(messages) for messages in prompts(run).values()]
    where = 0
    for sentence in sentences:
        while sentence not in text[where]:
            where += 1


@pytest.mark.parametrize("chunk_tokens", [500, 1000, 2000])
def test_the_ten_long_documents_of_the_third_question(chunk_tokens: int) -> None:
    workload = replace(Summarize.paper(), document_tokens=(42_000, 44_000), chunk_tokens=chunk_tokens)
    beginnings = set()
    for index in range(workload.documents):
        sentences = corpus.document(index, 42_000)
        assert corpus.tokens(" ".join(sentences)) > 41_900
        beginnings.add(sentences[0])
    assert len(beginnings) == 10
    calls = len(workload.plan(Random(1)).calls)
    assert 41_900 / chunk_tokens <= calls <= 44_000 / chunk_tokens * 1.1


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_search_asks_different_queries_behind_one_long_prompt(seed: int) -> None:
    run = Search.paper().plan(Random(seed))
    assert 2 <= len(run.calls) <= 8
    assert all(call.max_tokens == 800 and not call.parents and call.step == "query" for call in run.calls)
    asked = prompts(run).values()
    (system,) = {messages[0]["content"] for messages in asked}
    assert 2800 <= corpus.tokens(system) <= 3000
    queries = [messages[1]["content"] for messages in asked]
    assert len(set(queries)) == len(queries) and set(queries) <= set(all_queries())


def test_search_keeps_its_queries_in_flight() -> None:
    run = replace(Search.paper(), queries=(5, 5), in_flight=2).plan(Random(0))
    assert [call.after for call in run.calls] == [(), (), ("query-1",), ("query-2",), ("query-3",)]


def test_there_are_64_queries() -> None:
    assert len(set(all_queries())) == len(all_queries()) == 64


@given(max_tokens=st.integers(130, 3000))
def test_the_system_prompt_has_all_its_parts_at_every_length(max_tokens: int) -> None:
    prompt = system_prompt(max_tokens)
    assert corpus.tokens(prompt) <= max_tokens
    assert all(corpus.read(f"search/{part}.md").split("\n\n")[0] in prompt for part in PARTS)


@given(seed=seeds)
@settings(max_examples=25, deadline=None)
def test_coding_goes_from_architect_to_revisers(seed: int) -> None:
    run = Coding.paper().plan(Random(seed))
    assert 15 <= len(run.calls) <= 20
    steps = Counter(call.step for call in run.calls)
    modules = steps["engineer"]
    assert steps == {"architect": 1, "engineer": modules, "reviewer": modules, "reviser": modules}
    caps = {call.step: call.max_tokens for call in run.calls}
    assert caps["engineer"] == 1000 and caps["reviewer"] == caps["reviser"] == 500
    expected = {
        "architect": (),
        "engineer-1": ("architect",),
        "reviewer-1": ("architect", "engineer-1"),
        "reviser-1": ("architect", "engineer-1", "reviewer-1"),
    }
    assert {call.node: call.parents for call in run.calls if call.node in expected} == expected


def test_calls_of_one_coding_role_share_their_prefix() -> None:
    asked = prompts(Coding.paper().plan(Random(0)))
    one, other = asked["engineer-1"], asked["engineer-2"]
    assert one[0] == other[0]
    shared, _, module = one[1]["content"].rpartition("Your module: ")
    assert other[1]["content"].startswith(shared) and not other[1]["content"].endswith(module)


def test_a_composite_run_is_a_chain_and_a_session_side_by_side() -> None:
    run = Composite.small().plan(Random(0))
    assert {call.step for call in run.calls} == {"chunk", "query"}
    waits = {call.node: {*call.parents, *call.after} for call in run.calls}
    assert waits["chunk-1"] == waits["query-1"] == set()
    assert all(other.partition("-")[0] == node.partition("-")[0] for node, others in waits.items() for other in others)


@given(seed=seeds, sizes=st.tuples(st.integers(1, 800), st.integers(1, 800)), shared=st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_request_has_the_lengths_it_is_given(seed: int, sizes: tuple[int, int], shared: bool) -> None:
    head, own = sizes
    workload = Request(head * shared + own, 7, head * shared)
    (call,) = workload.plan(Random(seed)).calls
    assert sum(about_tokens(piece) for piece in call.prompt) == workload.input_tokens and call.max_tokens == 7
    assert all(corpus.tokens(piece.text) <= about_tokens(piece) for piece in call.prompt)
    (other,) = workload.plan(Random(seed + 1)).calls
    assert [first == second for first, second in zip(call.prompt, other.prompt, strict=True)][:shared] == [
        True
    ] * shared


@pytest.mark.parametrize("kind", ALL)
def test_lengths_are_knobs(kind: type[Workload]) -> None:
    workload = sized(kind, "paper")
    assert workload.sized() == workload
    longest = max(call.max_tokens for call in workload.sized(output_tokens=60).plan(Random(1)).calls)
    assert longest == 60

    def prompt_tokens(workload: Workload) -> int:
        return max(sum(map(about_tokens, call.prompt)) for call in workload.plan(Random(1)).calls)

    assert prompt_tokens(workload.sized(input_tokens=200)) < prompt_tokens(workload.sized(input_tokens=300))


def test_texts_of_ones_own(tmp_path: Path) -> None:
    for name, text in (("b.md", "Second text. It has words."), ("a.txt", "First text. " * 40), ("c.pdf", "no")):
        (tmp_path / name).write_text(text)
    workload = Summarize(chunk_tokens=50, document_tokens=(60, 60), documents=2, texts=str(tmp_path))
    read = {text_of(call.messages({"chunk-1": ""})) for n in range(9) for call in workload.plan(Random(n)).calls}
    assert len(read) == 3 and all("First text." in text or "Second text." in text for text in read)
    (tmp_path / "asked").write_text("why?\n\nhow?\n")
    (tmp_path / "asked.jsonl").write_text('{"text": "why?"}\n{"prompt": "how?"}\n')
    for name in ("asked", "asked.jsonl"):
        calls = Search(queries=(2, 2), texts=str(tmp_path / name)).plan(Random(0)).calls
        assert {call.messages({})[1]["content"] for call in calls} == {"why?", "how?"}


@pytest.mark.parametrize(("name", "text"), [("a.jsonl", "{}"), ("a.jsonl", "x"), ("a", " \n"), ("none", None)])
def test_texts_that_cannot_be_used_are_refused(tmp_path: Path, name: str, text: str | None) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(OwnTextsError, match=str(tmp_path / name)):
        Search(texts=str(tmp_path / name))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Search(queries=(0, 3)),
        lambda: Search(queries=(2, 65)),
        lambda: Search(in_flight=0),
        lambda: Search(system_tokens=50),
        lambda: Search(system_tokens=100_000),
        lambda: Summarize(chunk_tokens=500, document_tokens=(400, 900)),
        lambda: Summarize(document_tokens=(3000, 2000)),
        lambda: Coding(modules=(0, 2)),
        lambda: Coding(modules=(2, 7)),
        lambda: Request(input_tokens=5, shared_tokens=5),
        lambda: Request(output_tokens=0),
    ],
)
def test_impossible_shapes_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=r"must be .*, got"):
        wrong()


def test_all_are_registered() -> None:
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    registered = pyproject["project"]["entry-points"]["joulegate.workloads"]
    assert registered.keys() == {kind.name for kind in (*ALL, Replay)}
    for name, target in registered.items():
        module, _, attribute = target.partition(":")
        assert getattr(import_module(module), attribute).name == name
