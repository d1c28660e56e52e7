"""Starts the real ParrotServe on a machine without a GPU: `python launch.py core|engine [its own arguments]`.

The checkout is on PYTHONPATH. Its `openai` engine computes nothing, but Parrot imports what computes all the same:
torch and transformers for names that nobody then uses, and its `builtin` engine with kernels of CUDA. Stand-ins take
their places, and everything else is Parrot as it is.
"""

import runpy
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

MAIN = {"core": "parrot.serve.http_server", "engine": "parrot.engine.http_server"}


def stand_in(name: str, **holds: Any) -> None:
    module = ModuleType(name)
    for key, value in holds.items():
        setattr(module, key, value)
    sys.modules[name] = module


def nothing(*_: Any) -> None:
    """A random seed has nothing to act on here."""


def main() -> None:
    part = sys.argv.pop(1)
    seeds = SimpleNamespace(manual_seed=nothing, manual_seed_all=nothing)
    # Whatever else is asked of torch is the name of a type, in a table or an annotation.
    stand_in("torch", manual_seed=nothing, cuda=seeds, dtype=str, device=str, __getattr__=str)
    names = ("AutoTokenizer", "PreTrainedTokenizer", "PreTrainedTokenizerFast")
    stand_in("transformers", **{name: type(name, (), {}) for name in names})
    stand_in("parrot.engine.builtin.builtin_engine", BuiltinEngine=type("BuiltinEngine", (), {}))
    runpy.run_module(MAIN[part], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
