"""What the kinds read from real metrics, and how a configuration becomes an engine."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import ConfigError, EngineConfig
from proxy.engines.embedded import Embedded
from proxy.engines.interface import Engine, EngineSample, load_engine
from proxy.engines.llamacpp import LlamaCpp
from proxy.engines.openai import OpenAI
from proxy.engines.vllm import Vllm

HERE = Path(__file__).parent
CONFIG = EngineConfig(name="e1", kind="openai", url="http://10.0.0.7:8000/v1")
FRAGMENTS = [b"\n", b" ", b"{", b"}", b'le="+Inf"', b"1e999", b"-3", b"7", b"NaN", b"\xff\x00"]
NAMES = [
    b"vllm:num_requests_running",
    b"vllm:kv_cache_usage_perc",
    b"llamacpp:n_decode_total",
    b"vllm:prompt_tokens_total",
]


def test_vllm_is_read_over_all_its_engine_cores() -> None:
    assert Vllm(CONFIG).parse(12.5, (HERE / "vllm.prom").read_bytes()) == EngineSample(
        t=12.5,
        steps=7011,
        prompt_tokens=91100,
        cached_tokens=66048,
        output_tokens=12345700,
        running=8,
        waiting=2,
        kv_usage=0.4375,
    )


def test_vllm_before_0_10_says_gpu_in_two_names() -> None:
    body = b'vllm:gpu_prefix_cache_hits_total{engine="0"} 64.0\nvllm:gpu_cache_usage_perc{engine="0"} 0.25\n'
    assert Vllm(CONFIG).parse(0.0, body) == EngineSample(0.0, cached_tokens=64, kv_usage=0.25)


def test_llamacpp_counts_cached_prompt_tokens_apart() -> None:
    body = (HERE / "llamacpp.prom").read_bytes()
    assert b"Number of prompt tokens processed, excluding cached tokens" in body
    sample = LlamaCpp(CONFIG).parse(3.0, body)
    assert sample is not None and sample.prompt_tokens is not None and sample.cached_tokens is not None
    assert f"prompt_tokens_total {sample.prompt_tokens - sample.cached_tokens:.0f}\n".encode() in body
    assert f"n_decode_total {sample.steps:.0f}\n".encode() in body
    assert f"tokens_predicted_total {sample.output_tokens:.0f}\n".encode() in body
    assert (sample.running, sample.waiting, sample.kv_usage) == (0, 0, None)


def test_llamacpp_without_the_cached_counter_does_not_guess_the_prompt() -> None:
    sample = LlamaCpp(CONFIG).parse(0.0, b"llamacpp:prompt_tokens_total 7\nllamacpp:tokens_predicted_total 3\n")
    assert sample == EngineSample(0.0, output_tokens=3)


@pytest.mark.parametrize("kind", [OpenAI, Vllm, LlamaCpp])
@given(st.binary() | st.lists(st.sampled_from(FRAGMENTS + NAMES), max_size=40).map(b"".join))
def test_no_bytes_make_parse_raise(kind: type[OpenAI], body: bytes) -> None:
    sample = kind(CONFIG).parse(1.0, body)
    assert sample is None or (sample.t == 1.0 and (sample.kv_usage is None or 0 <= sample.kv_usage <= 1))


@pytest.mark.parametrize(
    ("url", "base", "local"),
    [
        ("http://h:8000", "http://h:8000", False),
        ("http://h:8000/", "http://h:8000", False),
        ("http://h:8000/v1", "http://h:8000", False),
        ("http://h:8000/v1/", "http://h:8000", False),
        ("https://h/team/v1/", "https://h/team", False),
        ("http://127.0.0.1:9000", "http://127.0.0.1:9000", True),
        ("http://[::1]:9000/v1", "http://[::1]:9000", True),
        ("http://localhost:9000", "http://localhost:9000", True),
    ],
)
def test_an_url_is_the_same_engine_with_and_without_v1(url: str, base: str, local: bool) -> None:
    engine = OpenAI(EngineConfig(name="e1", kind="openai", url=url))
    assert (engine.url, engine.local) == (base, local)


@pytest.mark.parametrize("url", ["http://", "http:///v1", "http://h:port", "http://[::1"])
def test_an_url_that_leads_nowhere_is_named(url: str) -> None:
    with pytest.raises(ConfigError, match="engine e1: url 'http://"):
        OpenAI(EngineConfig(name="e1", kind="openai", url=url))


def test_the_engines_key_goes_upstream(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.write_text("s3cret\n")
    config = CONFIG.model_copy(update={"api_key_file": secret})
    assert Vllm(config).headers == {"Authorization": "Bearer s3cret"}
    assert Vllm(CONFIG).headers == {}


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(("kind", "expected"), [("openai", OpenAI), ("vllm", Vllm), ("llamacpp", LlamaCpp)])
def test_a_kind_is_found_by_its_entry_point(kind: str, expected: type) -> None:
    engine: Engine = load_engine(CONFIG.model_copy(update={"kind": kind}))
    assert type(engine) is expected and engine.kind == kind


@pytest.mark.usefixtures("registered")
def test_embedded_is_found_and_serves_the_demo_model_by_its_name() -> None:
    engine = load_engine(EngineConfig(name="e1", kind="embedded"))
    assert isinstance(engine, Embedded) and engine.local and engine.models == ("smollm2-135m-instruct",)
    own = Embedded(EngineConfig(name="e1", kind="embedded", model_path=Path("/models/Qwen3-0.6B.gguf")))
    assert own.models == ("Qwen3-0.6B",)
    with pytest.raises(ConfigError, match="takes no url"):
        load_engine(EngineConfig(name="e1", kind="embedded", url="http://127.0.0.1:9000"))


@pytest.mark.usefixtures("registered")
def test_an_unknown_kind_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as error:
        load_engine(CONFIG.model_copy(update={"kind": "vlm"}))
    assert str(error.value) == "engine e1: unknown kind 'vlm'; known kinds: embedded, llamacpp, openai, parrot, vllm"


def test_a_registration_that_leads_nowhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[joulegate.engines]\nbroken = proxy.engines.vllm:Nope\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"engine e1: kind broken \(proxy.engines.vllm:Nope\) cannot load"):
        load_engine(CONFIG.model_copy(update={"kind": "broken"}))
