import json

from policies.interface import Decision, Release
from proxy.control.history import History, Measured, Standing, groups
from proxy.control.learner import Served


def test_a_decision_that_stays_is_one_entry() -> None:
    history = History()
    for t in range(10):
        rules = {"search": Release(3.0 + 0.05 * t, 0.5)}
        assert history.add(float(t), Standing.ACTING, Decision(release=rules, reason=f"{t}")) is (t == 0)
    assert history.add(10.0, Standing.ACTING, Decision(release={"search": Release(1.0, 0.5)}))
    assert history.add(11.0, Standing.BACKED_OFF, Decision(), "it was late")
    first, second, third = (entry.shown() for entry in history.entries)
    assert (first["t"], first["last"], first["times"], first["reason"]) == (0.0, 9.0, 10, "9")
    assert second["decision"] == {"release": {"search": {"hold_s": 1.0, "join_s": 0.5, "group": "", "join_part": 0.0}}}
    assert (third["standing"], third["why"]) == ("backed_off", "it was late")
    json.dumps([first, second, third])


def test_only_the_last_hundred_are_kept() -> None:
    history = History()
    for t in range(300):
        history.add(float(t), Standing.ACTING, Decision({"search": t}))
    assert len(history.entries) == 100 and history.entries[-1].decision.in_flight == {"search": 299}


def test_what_was_measured_goes_to_who_held_the_gateway() -> None:
    history = History()
    history.count("observe", Measured(100.0, 0, 10, 0, 0.0, 1000))
    history.count("observe", Measured(110.0, 3_000_000, 20, 0, 0.0, 2000))
    history.count("company", Measured(120.0, 5_000_000, 30, 8, 16.0, 3000))
    before, after = (history.measured[name].shown() for name in ("observe", "company"))
    assert (before["joules_per_request"], after["joules_per_request"]) == (0.3, 0.2)
    assert (after["requests_held"], after["mean_wait_s"], after["seconds"]) == (8, 1.6, 10.0)
    assert Measured().shown()["joules_per_request"] is None


def test_who_left_together() -> None:
    def left(dispatched: float, wait_s: float = 1.0) -> Served:
        return Served(dispatched - wait_s, dispatched, None, dispatched + 1)

    served = [left(10.0), left(20.003), left(20.0), left(20.012), left(15.0, wait_s=0.0), left(30.0)]
    assert groups(served) == [1, 3, 1]
    assert groups([]) == []
