from hypothesis import given
from hypothesis import strategies as st

from proxy.engines.exposition import total, values


def test_sums_over_label_sets_and_ignores_names_that_only_begin_alike() -> None:
    text = (
        b'a_total{x="1"} 2\na_total{x="b } 9"} 3 1700000000\na_total_more 50\nthe_a_total 60\n# TYPE a_total counter\n'
    )
    assert total(text, b"a_total") == 5


def test_a_bare_metric_a_last_line_without_end_and_windows_line_ends() -> None:
    assert total(b"a 1\r\nb\t2.5e1\r\nc 3", b"a") == 1
    assert total(b"a 1\r\nb\t2.5e1\r\nc 3", b"b") == 25
    assert total(b"a 1\r\nb\t2.5e1\r\nc 3", b"c") == 3


def test_what_is_no_count_is_passed_over() -> None:
    assert total(b"a NaN\na +Inf\na -1\na\na \na x\na{\n", b"a") is None
    assert total(b"a NaN\na 4\n", b"a") == 4
    assert total(b"a 1e308\na 1e308\n", b"a") is None
    assert total(b"", b"a") is None


@given(st.lists(st.floats(0, 1e15), min_size=1, max_size=20), st.text(alphabet='ab{}" ,=', max_size=8))
def test_every_value_is_found_whatever_the_labels_hold(counts: list[float], label: str) -> None:
    lines = [f'm{{l="{label}",n="{n}"}} {count!r}' for n, count in enumerate(counts)]
    assert list(values("\n".join(lines).encode(), b"m")) == counts
