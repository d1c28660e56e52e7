"""Two engines that are compared: an emulated one, and real vLLM as it was recorded."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the tests here share modules; the folder is no package

from perform import Player
from servers import emulator


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Player]]:
    """`emulated("usual")`: a player before an emulator with the limits of that group, started once."""
    players: dict[str, Player] = {}
    with ExitStack() as stack:

        def player(group: str) -> Player:
            if group not in players:
                log = tmp_path_factory.mktemp("emulator") / f"{group}.txt"
                players[group] = Player(stack.enter_context(emulator(group, log)), every_s=0.01)
            return players[group]

        yield player
