from proxy.energy.hits import Hits
from proxy.energy.work import Progress


def sent(t: float, prompt: int, first: float | None = None, streamed: bool = True) -> Progress:
    return Progress("r", 1, "e1", t, prompt, streamed, first=first)


def test_what_was_found_in_the_cache_is_of_those_that_waited_for_their_first_token() -> None:
    hits = Hits()
    hits.look(9.0, 5000.0, [])
    old, first, second = sent(1.0, 4000, first=2.0), sent(9.2, 1001), sent(9.4, 3001)
    hits.look(10.0, 7000.0, [old, first, second])
    assert [one.cached_guess for one in (old, first, second)] == [0, 500, 1500]
    assert (second.uncached, hits.counted, hits.told) == (1501, True, False)
    hits.look(11.0, 8000.0, [old, first, second])
    assert [one.cached_guess for one in (old, first, second)] == [0, 750, 2250], "who still waits can have more"
    first.first = second.first = 11.5
    first.ended, late = 11.8, sent(12.5, 900)
    hits.look(12.0, 8000.0, [old, first, second, late])
    hits.look(13.0, 8400.0, [old, first, second, late])
    assert [one.cached_guess for one in (first, second, late)] == [750, 2250, 400]


def test_nobody_has_more_than_his_prompt_and_at_least_one_token_is_computed() -> None:
    hits, one = Hits(), sent(0.5, 64)
    hits.look(0.0, 0.0, [])
    hits.look(1.0, 900.0, [one])
    assert (one.cached_guess, one.uncached) == (63, 1)


def test_a_request_without_a_stream_is_taken_up_when_it_is_sent() -> None:
    hits, old, new = Hits(), sent(1.0, 1001, streamed=False), sent(9.5, 1001, streamed=False)
    hits.look(9.0, 0.0, [old])
    hits.look(10.0, 600.0, [old, new])
    assert (old.cached_guess, new.cached_guess) == (0, 600)


def test_an_engine_that_tells_in_its_usages_is_believed() -> None:
    hits, told, silent = Hits(), sent(0.5, 1000), sent(1.5, 1000)
    hits.look(0.0, 0.0, [])
    hits.look(1.0, 300.0, [told])
    told.prompt_tokens, told.cached_tokens, told.ended = 1000, 128, 1.2
    assert told.uncached == 872, "a usage goes before a guess"
    hits.relay(told)
    hits.look(2.0, 700.0, [silent])
    assert (hits.told, silent.cached_guess) == (True, 0), "a usage without a word of it means none"


def test_a_counter_that_fell_begins_anew() -> None:
    hits, one = Hits(), sent(0.5, 1000)
    hits.look(0.0, 9000.0, [])
    hits.look(1.0, 50.0, [one])
    assert one.cached_guess == 0
    hits.look(2.0, 250.0, [one])
    assert one.cached_guess == 200
