import asyncio

import pytest

from proxy import deadline as module
from proxy.deadline import Deadline, Overdue, Watch

LONG = 60.0


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.002)


def this_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def forever() -> None:
    await asyncio.Event().wait()


async def test_a_first_byte_that_does_not_come() -> None:
    with pytest.raises(Overdue) as error, Deadline(this_task(), 0.01):
        await forever()
    assert error.value.what == "nothing came for 0.01 s"
    assert this_task().cancelling() == 0


async def test_silence_between_two_bytes_though_the_first_might_have_taken_long() -> None:
    with pytest.raises(Overdue, match=r"0\.02"), Deadline(this_task(), LONG) as deadline:
        deadline.first_byte(0.02)
        for _ in range(5):
            deadline.wait()
            await asyncio.sleep(0.001)
            deadline.heard()
        deadline.wait()
        await forever()


async def test_the_whole_time_is_up_even_while_the_client_is_waited_for() -> None:
    loop = asyncio.get_running_loop()
    with pytest.raises(Overdue, match="in all"), Deadline(this_task(), LONG, ends=loop.time() + 0.01) as deadline:
        deadline.first_byte(LONG)
        await forever()


async def test_a_slow_client_is_not_the_engines_silence() -> None:
    with Deadline(this_task(), LONG) as deadline:
        deadline.first_byte(0.01)
        await asyncio.sleep(0.05)
        deadline.wait()
        deadline.heard()
        deadline.stop()


async def test_after_the_end_nothing_fires() -> None:
    with Deadline(this_task(), 0.01):
        pass
    await asyncio.sleep(0.03)


async def test_a_cancellation_by_another_is_not_swallowed() -> None:
    entered = asyncio.Event()

    async def wait() -> None:
        with Deadline(this_task(), LONG) as deadline:
            entered.set()
            try:
                await forever()
            finally:
                deadline._end("at the same time")

    task = asyncio.create_task(wait())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_one_watch_ends_each_in_its_time_and_rests_when_there_is_none() -> None:
    watch, ended = Watch(), list[float]()

    async def wait(limit_s: float) -> None:
        with pytest.raises(Overdue), Deadline(this_task(), limit_s, watch=watch):
            await forever()
        ended.append(limit_s)

    with Deadline(this_task(), LONG, watch=watch):
        await asyncio.gather(*(wait(limit_s) for limit_s in (0.06, 0.02, 0.04)))
        assert ended == [0.02, 0.04, 0.06] and watch._timer is not None
    await asyncio.sleep(0.02)
    assert watch._timer is None
    with pytest.raises(Overdue), Deadline(this_task(), 0.01, watch=watch):
        await forever()
