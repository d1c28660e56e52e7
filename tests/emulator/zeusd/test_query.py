import pytest

from emulator.zeusd.query import BadIndex, BadQuery, indices, parsed, to_read, to_stream

LIMIT = {"gpu_ids": str, "power_limit_mw": int, "block": bool}


def test_every_argument_gets_its_type() -> None:
    query = "gpu_ids=0%2C1&power_limit_mw=300000&block=true"
    assert parsed(query, LIMIT) == {"gpu_ids": "0,1", "power_limit_mw": 300_000, "block": True}
    assert parsed("", {"gpu_ids": str}, "gpu_ids") == {}
    assert parsed("power_limit_mw=%2B7", {"power_limit_mw": int}) == {"power_limit_mw": 7}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("gpu_ids=0&power_limit_mw=1", "missing field `block`"),
        ("block=true&power_limit_mw=1", "missing field `gpu_ids`"),
        ("", "missing field `gpu_ids`"),
        (
            "gpu_ids=0&power_limit_mw=1&block=true&force=1",
            "unknown field `force`, expected one of `gpu_ids`, `power_limit_mw`, `block`",
        ),
        ("gpu_ids=0&gpu_ids=1", "duplicate field `gpu_ids`"),
        ("gpu_ids=0&power_limit_mw=1&block=yes", "provided string was not `true` or `false`"),
        ("gpu_ids=0&power_limit_mw=-1&block=true", "invalid digit found in string"),
        ("gpu_ids=0&power_limit_mw=1.5&block=true", "invalid digit found in string"),
        ("gpu_ids=0&power_limit_mw=1_000&block=true", "invalid digit found in string"),
        ("gpu_ids=0&power_limit_mw=4294967296&block=true", "number too large to fit in target type"),
        (f"gpu_ids=0&power_limit_mw={'9' * 5000}&block=true", "number too large to fit in target type"),
        ("gpu_ids=0&power_limit_mw=&block=true", "cannot parse integer from empty string"),
    ],
)
def test_what_is_wrong_is_said_as_the_daemon_says_it(query: str, says: str) -> None:
    with pytest.raises(BadQuery) as bad:
        parsed(query, LIMIT)
    assert str(bad.value) == f"Query deserialize error: {says}"


def test_few_fields_are_named_in_few_words() -> None:
    with pytest.raises(BadQuery, match=r"unknown field `x`, expected `gpu_ids`$"):
        parsed("x=1", {"gpu_ids": str})
    with pytest.raises(BadQuery, match=r"unknown field `x`, expected `gpu_ids` or `block`$"):
        parsed("x=1", {"gpu_ids": str, "block": bool})


def test_indices_come_in_order_and_once() -> None:
    assert indices(" 3,1 ,3", "GPU") == [1, 3]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "gpu_ids must contain at least one GPU index"),
        (" ", "gpu_ids must contain at least one GPU index"),
        ("0,,1", "gpu_ids contains an empty GPU index"),
        ("0,x", "Invalid GPU index: x"),
        ("-1", "Invalid GPU index: -1"),
        (str(2**64), f"Invalid GPU index: {2**64}"),
    ],
)
def test_a_bad_index_is_named(text: str, says: str) -> None:
    with pytest.raises(BadIndex) as bad:
        indices(text, "GPU")
    assert str(bad.value) == says


def test_which_devices_are_meant() -> None:
    assert to_read({}, "CPU", range(2)) == to_stream({}, "CPU", range(2)) == [0, 1]
    assert to_read({"cpu_ids": "1"}, "CPU", range(2)) == to_stream({"cpu_ids": "1"}, "CPU", range(2)) == [1]
    with pytest.raises(BadIndex, match=r"^CPU 2 not found$"):
        to_read({"cpu_ids": "1,2,3"}, "CPU", range(2))
    with pytest.raises(BadIndex) as bad:
        to_stream({"cpu_ids": "1,2,3"}, "CPU", range(2))
    assert str(bad.value) == "Unknown CPU indices: [2, 3]. Available: [0, 1]"
