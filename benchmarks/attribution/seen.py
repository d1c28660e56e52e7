"""What a gateway before the emulated engine would have seen of a mix: nothing but counters, times and usage."""

from dataclasses import replace
from random import Random

import numpy as np

from benchmarks.attribution.load import Mix, Sent, Users, bend
from benchmarks.attribution.truth import BLOCK, Observer, Truth, Watched
from emulator.core.machine import Machine
from emulator.core.presets import GpuPreset, ModelPreset
from emulator.replay import Replay
from proxy.energy.trace import Counter, Scenario, Served

COUNTER_S = 0.1  # how often the card's counter moves, in whole millijoules
LOOK_S = 0.097  # how often the gateway looks at it, and up to LATE_S later
LATE_S = 0.002
REST_S = 1.5
CONTEXT_BLOCKS, CONTEXTS = 4096 // BLOCK, (1.0, 1.5, 2.0)  # a cache that is too small holds so many contexts
GUESS = (0.9, 1.1)  # how well the gateway guesses the prompt of who left without a usage


def play(mix: Mix, gpu: GpuPreset, model: ModelPreset) -> tuple[Truth, Scenario]:
    """Run a mix, with some idle time before and after; what was true, and what the gateway saw."""
    rng = Random(f"{mix.seed} load")
    replay = Replay(gpu, model)
    settings = replay.machine.settings
    if mix.bent == "evictions":
        settings = replace(settings, kv_blocks=round(CONTEXT_BLOCKS * rng.choice(CONTEXTS)))
    card = Watched(gpu.card, gpu.factors, model.shape)
    replay.machine = Machine(settings, [card])
    users = Users(replay, rng)
    replay.run(users.warm())
    users.sent.clear()
    observer = replay.machine.observer = Observer(users.sent, card, mix.seed)
    began, warm_j = replay.now, card.energy_j
    tasks = users.tasks(mix.users, began + mix.seconds)
    if mix.bent in ("cap", "clocks"):
        tasks.append(bend(mix.bent, card, rng, replay, began + mix.seconds))
    replay.run(*tasks)
    replay.rest(replay.now + REST_S)
    truth = observer.truth
    truth.preemptions = replay.machine.scheduler.preemptions
    moved = _moved(truth, began, replay.now, card.idle_power_w)
    assert abs(moved[1][-1] + warm_j - card.energy_j) < 1e-3 * card.energy_j, "every joule of the card is known"
    served = [_served(name, one, truth, rng) for name, one in users.sent.items()]
    return truth, Scenario(_counters(truth, *moved, rng), served)


def _moved(truth: Truth, began: float, ended: float, idle_w: float) -> tuple[np.ndarray, np.ndarray]:
    """The card's joules over time: (times, joules since it began)."""
    starts, ends, joules = np.array(truth.steps).T
    idle_s = np.diff(np.concatenate(([began], np.stack((starts, ends), axis=1).ravel(), [ended])))[::2]
    spent = np.zeros(2 * len(starts) + 2)
    spent[1::2] = idle_s * idle_w
    spent[2::2] = joules
    times = np.concatenate(([began], np.stack((starts, ends), axis=1).ravel(), [ended]))
    return times, np.cumsum(spent)


def _counters(truth: Truth, times: np.ndarray, moved_j: np.ndarray, rng: Random) -> list[Counter]:
    """The card's counter, and the engine's, which are asked once or twice a second."""
    phase_s, ask_s = rng.uniform(0, COUNTER_S), 1 / rng.uniform(1, 2)
    looks = np.arange(times[0], times[-1] - LATE_S, LOOK_S)
    looks += np.array([rng.uniform(0, LATE_S) for _ in looks])
    moves = np.floor((looks - phase_s) / COUNTER_S) * COUNTER_S + phase_s
    energies_mj = np.floor(1000 * np.interp(moves, times, moved_j)).astype(int)
    hit_at, hits = [at for at, _ in truth.hits], np.cumsum([0, *(tokens for _, tokens in truth.hits)])
    lines: list[Counter] = []
    asked, told = -1.0, (0.0, 0.0, 0.0)
    for t, energy_mj in zip(looks.tolist(), energies_mj.tolist(), strict=True):
        if t - asked >= ask_s:
            asked = t
            steps, tokens, found = (np.searchsorted(of, t, "right") for of in (truth.counted, truth.generated, hit_at))
            told = float(steps), float(tokens), float(hits[found])
        lines.append(Counter(t, energy_mj * 1000, "gpu", "e", *told, asked))
    return lines


def _served(name: str, sent: Sent, truth: Truth, rng: Random) -> Served:
    """A request as the gateway saw it. Of one whose client has left nobody tells the usage."""
    answer, ticks = sent.answer, truth.ticks.get(name, [])
    end = answer.at if answer else sent.at + sent.patience_s
    ticks = [t for t in ticks if t <= end]
    return Served(
        id=name,
        cls=name.partition("-")[0],
        engine="e",
        t0=sent.at,
        first=ticks[0] if ticks else None,
        end=end,
        prompt_tokens=answer.prompt_tokens if answer else round(sent.prompt_tokens * rng.uniform(*GUESS)),
        cached_tokens=answer.cached_tokens if answer else None,
        output_tokens=answer.output_tokens if answer else None,
        ticks=ticks,
        streamed=True,
    )
